#!/usr/bin/env python3
"""Stands in for vLLM (`vllm serve …`) and for the fetch of an adapter, in a pod of a test.

It takes vLLM's arguments, asks for vLLM's key, and answers as tests/gateway/stub.py does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    args = sys.argv[1:]
    if "--out-dir" in args:
        Path(args[args.index("--out-dir") + 1]).mkdir(parents=True, exist_ok=True)
        return
    sys.path.insert(0, "/stand-in")
    from aiohttp import web
    from stub import Stub

    stub = Stub()
    stub.key = os.environ["VLLM_API_KEY"]
    base = args[args.index("--served-model-name") + 1]
    adapter = json.loads(args[args.index("--lora-modules") + 1])
    stub.models = [
        {"id": base, "object": "model", "root": base, "max_model_len": 512},
        {"id": adapter["name"], "object": "model", "root": adapter["path"], "parent": base},
    ]
    # Its pod has a policy in front of it.
    web.run_app(stub.app(), host="0.0.0.0", port=8000, access_log=None, print=None)  # noqa: S104


if __name__ == "__main__":
    main()
