"""The gateway's image has no model libraries: tasks, parsers and overlays import none."""

import subprocess
import sys

import pytest


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
