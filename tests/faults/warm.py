"""A process that has imported everything, and forks itself into real step processes.

A step spends most of its few seconds on imports; a fork of this process pays for none of them. A
child is a process like any other: it can be killed, and it ends with an exit code of its own.

Requests come as lines of JSON on standard input, answers go to standard output:

    {"start": {...}}                   -> {"pid": 123}
    {"wait": 123, "seconds": 60}       -> {"code": 0}, negative for a signal, null if it still runs
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import harm
import unruly
from children import exit_code

ROOT = Path(__file__).parents[2]

LIBRARIES = (
    "mlflow",
    "mlflow.pyfunc",
    "mlflow.server",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.s3_artifact_repo",
    "torch",
    "torch.utils.data",
    "transformers",
    "peft",
    "accelerate",
    "pandas",
    "pyarrow.parquet",
    "boto3",
    "matplotlib.backends.backend_agg",
    "cryptography.hazmat.primitives.serialization",
    "cv2",
    "datasets",
    "jsonschema",
    "lxml.etree",
    "mistral_common.protocol.instruct.request",
    "mlflow.models.display_utils",
    "mlflow.utils.search_logged_model_utils",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "pyarrow.dataset",
    "rapidfuzz.process",
    "rensa",
    "sacrebleu",
    "torchvision.transforms.v2",
    "transformers.integrations.mistral.tokenizer",
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.video_processing_auto",
    "transformers.models.mistral.modeling_mistral",
    "transformers.trainer",
)
"""What the steps import when they need it, where it is installed."""


def command(name: str) -> Callable[..., Any]:
    """A step's command line, from its script."""
    spec = importlib.util.spec_from_file_location(f"step_{name}", ROOT / "steps" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    result: Callable[..., Any] = getattr(module, name)
    return result


def child(request: dict[str, Any], commands: dict[str, Callable[..., Any]]) -> None:
    """Become the step: its folder, its environment, its streams, and the fault that it meets."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(name, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [request["step"], *request["arguments"]]
    for fault, options in request["faults"]:
        getattr(harm, fault)(**options)
    gc.freeze()
    if request["step"] in unruly.SERVERS:
        unruly.serve(request["step"], *request["arguments"])
    else:
        commands[request["step"]](request["arguments"], prog_name=request["step"])


def end(code: int) -> None:
    """End as the interpreter does, but for the walk through what the warmed process imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def use_a_store(folder: str) -> None:
    """Do once what each step does with MLflow, so that what it sets up at first use is there."""
    import mlflow

    from loraline.tracking import runs, store

    os.chdir(folder)
    client = store.connect()
    with runs.open_run("warm", name="warm", fingerprint="warm") as run:
        mlflow.log_metrics({"a": 1.0})
        mlflow.log_dict({}, "a.json")
    client.search_runs([run.info.experiment_id], "tags.a = 'b'")
    client.create_registered_model("a")
    client.set_registered_model_tag("a", "b", "c")
    client.delete_registered_model("a")
    client.search_model_versions("name = 'a'")


def main() -> None:
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    for module in pkgutil.walk_packages([str(ROOT / "loraline")], "loraline."):
        importlib.import_module(module.name)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        use_a_store(folder)
    commands = {file.stem: command(file.stem) for file in sorted((ROOT / "steps").glob("*.py"))}
    answers = os.fdopen(os.dup(1), "w")
    print(json.dumps({"pid": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: dict[str, Any] = {"code": exit_code(request["wait"], request["seconds"])}
        else:
            pid = os.fork()
            if pid == 0:
                answers.close()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    child(request["start"], commands)
                except SystemExit as ended:
                    end(int(ended.code or 0))
                except BaseException:
                    traceback.print_exc()
                    end(1)
                end(0)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
