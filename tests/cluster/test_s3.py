"""What reading S3 promises, kept with the real server that comes with the cluster's programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def test_every_promise_is_kept_with_a_real_server(cluster: Any) -> None:
    if not shutil.which("versitygw"):
        pytest.skip("versitygw is not on the PATH")
    command = [sys.executable, "-m", "pytest", "-q", "tests/loraline/test_s3.py", "-k", "versitygw"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout
