"""A full disk is told of in one sentence, whoever met it."""

import errno
import os
import resource
import shutil
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from loraline.process import full_disk
from loraline.step import PipelineCommand
from loraline.tracking import runs, store

STORE = "sqlite:///mlruns/mlflow.db"


def no_space(*files: str) -> OSError:
    message = (errno.ENOSPC, os.strerror(errno.ENOSPC))
    return OSError(*message, files[0], None, *files[1:]) if files else OSError(*message)


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("could not be written") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (no_space("a.txt"), "the disk is full at a.txt; free some space and run it again"),
        (no_space("a.txt", "copy/a.txt"), "the disk is full at copy/a.txt; free some"),
        (raised_from(no_space("a.txt")), "the disk is full at a.txt; free some"),
        (
            RuntimeError(f"failures:\n### File a ###\n{no_space('/s/a', '/tmp/t/a')}\n### b"),
            "the disk is full at /tmp/t/a; free some",
        ),
        (RuntimeError(f"failures: {no_space()}"), "the disk is full; free some"),
        (
            RuntimeError("(sqlite3.OperationalError) database or disk is full"),
            f"the disk is full at {STORE}; free some",
        ),
        (
            RuntimeError("(sqlite3.OperationalError) disk I/O error"),
            f"{STORE} cannot be written (disk I/O error)",
        ),
        (OSError(errno.EFBIG, "File too large", "x"), "the file x may not grow any larger"),
        (RuntimeError("[Errno 27] File too large"), "a file may not grow any larger"),
    ],
)
def test_the_place_is_named_where_it_is_known(error: BaseException, message: str) -> None:
    result = full_disk.sentence(error, STORE)
    assert result is not None and result.startswith(message)


@pytest.mark.parametrize(
    "error", [ValueError("the desk is full"), FileNotFoundError(errno.ENOENT, "No such file", "x")]
)
def test_other_errors_are_none_of_it(error: Exception) -> None:
    assert full_disk.sentence(error, STORE) is None


def test_a_disk_without_room_is_found_where_no_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(full_disk, "NEXT_TO_NO_ROOM", free * 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = full_disk.sentence(no_space(), STORE)
    assert result == f"the disk is full at {tmp_path}; free some space and run it again"


@pytest.fixture
def downloading(workplace: Path) -> Result:
    """A command that fetches an artifact of MLflow's when no file may grow over 8 KiB."""
    client = store.connect()
    with runs.open_run("train_qlora", name="train", fingerprint="a") as run:
        (workplace / "weights").write_bytes(bytes(2**16))
        client.log_artifact(run.info.run_id, str(workplace / "weights"))

    @click.command(cls=PipelineCommand)
    def fetch() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, before[1]))
        try:
            with runs.artifacts(client, run.info.run_id, "weights"):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return CliRunner().invoke(fetch)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX's")
def test_mlflows_words_are_understood(downloading: Result) -> None:
    assert downloading.exit_code == 75, downloading.output
    assert downloading.stderr.startswith("fetch: the file ")
    assert "weights may not grow any larger: the limit of `ulimit -f`" in downloading.stderr
    assert len(downloading.stderr.splitlines()) == 1


def test_a_short_write_of_numpys_is_a_full_disk() -> None:
    error = OSError("6144 requested and 3040 written")
    assert "the disk is full" in (full_disk.sentence(error, "store") or "")
