"""SIGTERM ends a step as stopped wherever it strikes, and never in the middle of opening a run."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import click
import mlflow
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import event
from sqlalchemy.engine import Engine

from loraline.process import progress, signals
from loraline.step import PipelineCommand
from loraline.tracking import runs, store, tags


@pytest.fixture(autouse=True)
def terminal(signal_handlers: None) -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal; a shell's job in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signals.received.clear()


def invoke(work: click.decorators.FC) -> Result:
    return CliRunner().invoke(click.command("work", cls=PipelineCommand)(work))


def test_what_a_signal_turned_into_another_error_is_stopped() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("initialization of _C failed") from error

    result = invoke(work)
    assert (result.exit_code, result.stderr) == (75, "work: stopped by SIGTERM; start it again\n")


def test_long_work_hears_of_a_signal_that_was_swallowed() -> None:
    done = []

    def work() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with progress.bar("work", 2) as advance:
            advance(1, "")
            done.append(1)

    assert invoke(work).exit_code == 75
    assert not done


def test_a_signal_that_came_before_is_none_for_the_next_command() -> None:
    invoke(lambda: signal.raise_signal(signal.SIGTERM))
    assert invoke(lambda: None).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_held_signal_is_heard_at_the_end(number: signal.Signals) -> None:
    heard = []
    before = signal.signal(number, lambda signum, _: heard.append(signum))
    try:
        with signals.deferred():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert not heard
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_other_threads_hold_nothing() -> None:
    failed = []

    def work() -> None:
        try:
            with signals.deferred():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_a_run_that_is_stopped_while_it_is_opened_is_killed(
    workplace: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = mlflow.start_run

    def start_and_be_stopped(**options: object) -> mlflow.ActiveRun:
        run = start(**options)
        signal.raise_signal(signal.SIGTERM)
        return run

    monkeypatch.setattr(mlflow, "start_run", start_and_be_stopped)

    def work() -> None:
        client = store.connect()
        with runs.open_run("prepare_data", name="x", fingerprint="f"):
            client.create_experiment("never")

    assert invoke(work).exit_code == 75
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (run.info.status, run.data.tags[tags.FINGERPRINT]) == ("KILLED", "f")
    assert mlflow.active_run() is None


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["begin", "commit"])
def test_a_signal_within_a_transaction_is_heard_after_it(
    workplace: object, moment: str, number: signal.Signals, exit_code: int
) -> None:
    def work() -> None:
        store.connect()
        with runs.open_run("prepare_data", name="x", fingerprint="f"):
            event.listen(Engine, moment, lambda _: signal.raise_signal(number), once=True)
            mlflow.log_metric("loss", 1.0)
            time.sleep(10)
            slept.append(10)

    slept: list[int] = []
    assert invoke(work).exit_code == exit_code
    assert not slept
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0})


STOPPED_AS_A_POOL_STARTS = """
import signal, threading, time
from concurrent.futures import ThreadPoolExecutor
import click
from loraline.step import PipelineCommand

start = threading.Thread.start

def start_and_be_stopped(thread):
    threading.Thread.start = start
    start(thread)
    signal.raise_signal(signal.SIGTERM)

@click.command("work", cls=PipelineCommand)
def work():
    pool = ThreadPoolExecutor(1)
    threading.Thread.start = start_and_be_stopped
    pool.submit(int)
    time.sleep(10)
    print("never")

work()
"""


def test_a_process_ends_that_was_stopped_while_a_pool_started_a_thread() -> None:
    # The interpreter waits at its end for each thread of a pool, and wakes those that it knows.
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_AS_A_POOL_STARTS],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (75, ""), ended.stderr


STOPPED_TWICE = """
import atexit, signal
import click
from loraline.step import PipelineCommand

@click.command("work", cls=PipelineCommand)
def work():
    atexit.register(signal.raise_signal, signal.{again})
    signal.raise_signal(signal.{signal})

signal.signal(signal.SIGINT, signal.default_int_handler)
work()
"""


@pytest.mark.parametrize("again", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("number", "exit_code", "sentence"),
    [
        ("SIGTERM", 75, "work: stopped by SIGTERM; start it again\n"),
        ("SIGINT", 130, "work: interrupted\n"),
    ],
)
def test_a_command_that_is_stopped_twice_says_so_once(
    number: str, exit_code: int, sentence: str, again: str
) -> None:
    # A controller signals a container, and the node that drains signals it again.
    script = STOPPED_TWICE.format(signal=number, again=again)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (exit_code, sentence)
