"""Whether the server lists every adapter; the readiness probe of a server's pod.

    python3 ready.py MODEL...

Ends with 0 when each MODEL is served, with 1 when one is not. It runs in the server's image, where
nothing of loraline is installed.
"""

import json
import os
import sys
import urllib.request
from typing import Any

MODELS = "http://127.0.0.1:8000/v1/models"


class NotRedirected(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: the key is not sent to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def served(url: str) -> set[str]:
    """Names of the models that the server lists, asked without a proxy."""
    key = os.environ.get("VLLM_API_KEY", "")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NotRedirected)
    with opener.open(request, timeout=4) as answer:
        return {model["id"] for model in json.load(answer)["data"]}


if __name__ == "__main__":
    missing = set(sys.argv[1:]) - served(MODELS)
    sys.exit(f"not served yet: {', '.join(sorted(missing))}" if missing else 0)
