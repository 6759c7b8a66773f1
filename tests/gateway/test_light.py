"""The gateway's image has no model libraries: tasks, parsers and overlays import none."""

import gc
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import uvicorn

from gateway import logs, server
from gateway.settings import Settings


@pytest.mark.parametrize("module", ["gateway.tasks", "gateway.parsing", "gateway.overlay"])
def test_a_module_imports_no_model_library(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'numpy', 'pyarrow', 'scipy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_collector_leaves_what_was_loaded_alone(
    settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk through all of it takes 45 ms, in which no stream goes on."""
    frozen = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda _, sockets: frozen.append(gc.get_freeze_count())
    )
    monkeypatch.setattr(logs, "set_up", lambda _: logging.getLogger())
    try:
        server.run(settings_for(port=0))
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000
