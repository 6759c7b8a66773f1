"""The workflows' source, and the resource classes of several machines."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def source(script: Any) -> Any:
    return script("workflows/pipeline.py")


@pytest.fixture(scope="module")
def classes(script: Any) -> Any:
    known = script("workflows/resources.py").CLASSES
    return {name: wanted for name, wanted in known.items() if wanted.machines > 1}
