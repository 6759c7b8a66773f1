"""No rejected version is promoted, whichever answers of the store are lost, repeated or late."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from loraline.errors import UserError
from loraline.evaluation import rules
from loraline.evaluation.rules import Verdict
from loraline.tracking import lock, registry, runs, store
from loraline.tracking import tags as names

MODEL = "mistral-7b-lora"

WRITES = (
    "create_registered_model",
    "delete_registered_model",
    "create_model_version",
    "delete_model_version",
    "update_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "set_tag",
)


class AnswerLost(Exception):
    """The store has done what it was asked; who asked does not hear of it."""


@dataclass
class Wire:
    """What lies between a step and the store: it loses answers and repeats requests."""

    faults: list[str] = field(default_factory=list)
    """What happens to the next writes, in order."""

    late: list[Callable[[], Any]] = field(default_factory=list)
    """Repeated requests that have not arrived yet."""

    def send(self, request: Callable[[], Any]) -> Any:
        fault = self.faults.pop(0) if self.faults else "none"
        answer = request()
        if fault == "repeated":
            with suppress(Exception):
                request()
        elif fault == "late":
            self.late.append(request)
        elif fault == "lost":
            raise AnswerLost
        return answer


@contextmanager
def wired(wire: Wire) -> Iterator[None]:
    """Send all that MLflow's clients write through the wire."""
    from mlflow.tracking._model_registry.client import ModelRegistryClient
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    with pytest.MonkeyPatch.context() as patch:
        for owner in (ModelRegistryClient, TrackingServiceClient):
            for name in set(WRITES) & set(vars(owner)):
                method = getattr(owner, name)

                def call(self: Any, *args: Any, method: Any = method, **options: Any) -> Any:
                    return wire.send(lambda: method(self, *args, **options))

                patch.setattr(owner, name, call)
        yield


class Registry(RuleBasedStateMachine):
    """Gates that pass and reject, promotions and rollbacks, over a real SQLite store."""

    gate: Any
    base: Path
    database: Path
    stores = 0

    @initialize()
    def begin(self) -> None:
        Registry.stores += 1
        folder = self.base / str(Registry.stores)
        folder.mkdir()
        shutil.copy(self.database, folder / "mlflow.db")
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        self.patch.setattr(lock, "POLL_SECONDS", 0.01)
        self.client = store.connect()
        self.wire = Wire()
        self.words: dict[str, str] = {}
        """The last verdict by training run: the last gate run that has one."""
        self.trained = [self.train(), self.train()]
        for train_run in self.trained:
            self.judge(train_run, True, [])

    def teardown(self) -> None:
        while mlflow.active_run():
            mlflow.end_run()
        if hasattr(self, "patch"):
            self.patch.undo()

    def train(self) -> str:
        with runs.open_run("train_qlora", name="t", fingerprint="t") as run:
            self.client.set_tag(run.info.run_id, names.NOTE, "card")
            model = mlflow.initialize_logged_model(name="adapter", source_run_id=run.info.run_id)
            mlflow.finalize_logged_model(model.model_id, "READY")
            self.client.set_tag(run.info.run_id, names.MODEL_ID, model.model_id)
            self.client.set_tag(run.info.run_id, names.ADAPTER_DIGEST, "a" * 64)
        return str(run.info.run_id)

    # Mostly one write goes wrong: an operation that is cut early says little.
    FAULTS = st.one_of(
        st.just([]),
        st.builds(
            lambda before, fault: ["none"] * before + [fault],
            st.integers(0, 20),
            st.sampled_from(["lost", "lost", "late", "repeated"]),
        ),
        st.lists(st.sampled_from(["none", "repeated", "late", "lost"]), max_size=20),
    )

    @rule(number=st.integers(0, 1), passed=st.booleans(), faults=FAULTS)
    def gate_runs(self, number: int, passed: bool, faults: list[str]) -> None:
        self.judge(self.trained[number], passed, faults)

    def judge(self, train_run: str, passed: bool, faults: list[str]) -> None:
        train = self.client.get_run(train_run)
        verdicts = [Verdict("rule", 1, "at most", 1 if passed else 0, passed)]
        result = "passed" if passed else "failed"
        run = None
        self.wire.faults = list(faults)
        try:
            with (
                wired(self.wire),
                lock.locked(self.client, MODEL),
                runs.open_run(
                    "quality_gate", name="g", fingerprint="g", upstream=train, parent=train
                ) as run,
            ):
                outcome = {
                    names.RESULT: result,
                    names.REASON: rules.reasons(verdicts),
                    names.GATE_RUN: run.info.run_id,
                    names.ADAPTER_DIGEST: train.data.tags[names.ADAPTER_DIGEST],
                }
                self.gate.tag_runs(self.client, outcome, rules.markdown(verdicts), run, train)
                self.gate.register(self.client, MODEL, outcome, run, train, None)
        except AnswerLost:
            pass
        finally:
            self.wire.faults = []
        if run and names.RESULT in self.client.get_run(run.info.run_id).data.tags:
            self.words[train_run] = result
        self.forget_lock()

    @rule(faults=FAULTS, rollback=st.booleans())
    def promote(self, faults: list[str], rollback: bool) -> None:
        self.wire.faults = list(faults)
        move = registry.roll_back if rollback else registry.promote
        arguments = ("somebody",) if rollback else (None, "somebody")
        version = None
        try:
            with wired(self.wire), lock.locked(self.client, MODEL):
                version = move(self.client, MODEL, *arguments)
        except (AnswerLost, UserError):
            pass
        finally:
            self.wire.faults = []
        if version is not None and not rollback:
            champion = self.client.get_model_version(MODEL, version)
            assert self.words[champion.run_id] == "passed"
        self.forget_lock()

    @precondition(lambda self: self.wire.late)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A repeated request reaches the store at last, after others that were sent later."""
        request = self.wire.late.pop(data.draw(st.integers(0, len(self.wire.late) - 1)))
        with suppress(Exception):
            request()
        self.forget_lock()

    @invariant()
    def a_rejected_candidate_could_not_be_promoted(self) -> None:
        if not hasattr(self, "words"):
            return
        candidate = registry.version_of(self.client, MODEL, registry.CANDIDATE)
        if candidate is None or self.words[candidate.run_id] == "passed":
            return
        with pytest.raises(UserError):
            registry.gate_run_of(self.client, candidate)

    def forget_lock(self) -> None:
        """A lock whose unlocking was lost would be waited for."""
        for result in self.client.search_registered_models(f"name LIKE '{MODEL}.lock%'"):
            self.client.delete_registered_model(result.name)


@pytest.mark.parametrize("examples", [4, pytest.param(150, marks=pytest.mark.slow)])
def test_what_the_last_gate_rejected_is_not_promoted(
    examples: int, tmp_path: Path, empty_store: Path, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Registry.gate = script("steps/quality_gate.py")
    Registry.base = tmp_path
    Registry.database = empty_store
    run_state_machine_as_test(
        Registry,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_rejection_that_is_cut_at_any_write_counts(
    tmp_path: Path, empty_store: Path, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Registry.gate = script("steps/quality_gate.py")
    Registry.base = tmp_path
    Registry.database = empty_store
    machine = Registry()
    machine.begin()
    try:
        run = machine.trained[0]
        rejected = 0
        for before in range(16):
            machine.judge(run, True, [])
            machine.judge(run, False, ["none"] * before + ["lost"])
            rejected += machine.words[run] == "failed"
            machine.promote(faults=[], rollback=False)
        assert rejected > 8
    finally:
        machine.teardown()


def twice(create: Callable[..., Any]) -> Callable[..., Any]:
    """What MLflow's client does with a request whose answer is lost: it asks again."""

    def call(*arguments: Any, **options: Any) -> Any:
        create(*arguments, **options)
        return create(*arguments, **options)

    return call


def versions() -> list[str]:
    result = mlflow.MlflowClient().search_model_versions(f"name = '{MODEL}'")
    return sorted(str(version.version) for version in result)


def test_a_version_that_was_asked_for_twice_is_there_once(
    step, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking._model_registry.client import ModelRegistryClient as Client

    monkeypatch.setattr(Client, "create_model_version", twice(Client.create_model_version))
    assert step("quality_gate", "--run-id", candidate()).exit_code == 0
    assert versions() == ["1"]


def test_a_model_that_is_registered_twice_is_withdrawn_whichever_has_the_alias(
    step, candidate, workplace: Path
) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    client = mlflow.MlflowClient()
    first = client.get_model_version(MODEL, "1")
    mlflow.register_model(first.source, MODEL)
    client.set_registered_model_alias(MODEL, "candidate", "2")
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    assert registry.version_of(client, MODEL, "candidate") is None
    assert [client.get_model_version(MODEL, each).tags[names.RESULT] for each in "12"] == [
        "failed",
        "failed",
    ]
    client.set_registered_model_alias(MODEL, "candidate", "2")
    assert step("promote", "--model", MODEL).exit_code == 2


def test_tags_of_another_version_promote_nothing(step, candidate) -> None:
    """A version that no gate has judged, made to look like one that passed."""
    step("quality_gate", "--run-id", candidate())
    client = mlflow.MlflowClient()
    passed = client.get_model_version(MODEL, "1").tags
    other = client.get_run(candidate(name="other")).data.tags[names.UPSTREAM]
    model = client.get_run(other).data.tags[names.MODEL_ID]
    mlflow.register_model(f"models:/{model}", MODEL)
    for key, value in passed.items():
        client.set_model_version_tag(MODEL, "2", key, value)
    client.set_registered_model_alias(MODEL, "candidate", "2")
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert f"its gate run {passed[names.GATE_RUN]} did not judge it" in result.stderr


Fake = Callable[[Any, str, dict[str, str]], None]


def of_the_judged_run(client: Any, evil: str, passed: dict[str, str]) -> None:
    """Other weights, registered as if the training that was judged had made them."""
    judged = client.get_model_version(MODEL, "1")
    client.create_model_version(MODEL, evil, judged.run_id)
    for key, value in passed.items():
        client.set_model_version_tag(MODEL, "2", key, value)


def with_another_digest(client: Any, evil: str, passed: dict[str, str]) -> None:
    """The judged version, whose digest is now that of other files."""
    client.set_model_version_tag(MODEL, "1", names.ADAPTER_DIGEST, "e" * 64)


def promoted_by_a_tag(client: Any, evil: str, passed: dict[str, str]) -> None:
    of_the_judged_run(client, evil, passed)
    client.set_model_version_tag(MODEL, "2", registry.PROMOTED_GATE, passed[names.GATE_RUN])


def promoted_by_nobody(client: Any, evil: str, passed: dict[str, str]) -> None:
    client.create_model_version(MODEL, evil)
    client.set_model_version_tag(MODEL, "2", registry.PROMOTED_GATE, "0" * 32)


FAKES = {
    of_the_judged_run: "2",
    with_another_digest: "1",
    promoted_by_a_tag: "2",
    promoted_by_nobody: "2",
}


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_a_version_that_was_made_to_look_judged_is_not_served(
    step, candidate, workplace: Path, fake: Fake
) -> None:
    """Whichever alias somebody gives it: no promotion, no rollback, no pod that follows."""
    step("quality_gate", "--run-id", candidate())
    client = mlflow.MlflowClient()
    other = client.get_run(candidate(name="evil")).data.tags[names.UPSTREAM]
    evil = client.get_run(other).data.tags[names.MODEL_ID]
    fake(client, f"models:/{evil}", dict(client.get_model_version(MODEL, "1").tags))
    for alias in ("candidate", "previous", "champion"):
        client.set_registered_model_alias(MODEL, alias, FAKES[fake])
    with pytest.raises(UserError):
        registry.promoting_gate_run_of(client, client.get_model_version(MODEL, FAKES[fake]))
    assert step("promote", "--model", MODEL, "--rollback").exit_code == 2
    client.delete_registered_model_alias(MODEL, "champion")
    assert step("promote", "--model", MODEL).exit_code == 2
    assert registry.version_of(client, MODEL, "champion") is None


def test_a_rejection_in_another_experiment_counts(
    step, candidate, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    client = mlflow.MlflowClient()
    passed = client.get_model_version(MODEL, "1").tags
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    for key in (names.RESULT, names.REASON, names.GATE_RUN):
        client.set_model_version_tag(MODEL, "1", key, passed[key])
    client.set_registered_model_alias(MODEL, "candidate", "1")
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert "version 1 of 'mistral-7b-lora' was rejected: tuned_bleu" in result.stderr


@pytest.mark.parametrize("clock", ["right", "a day behind"])
def test_a_rejection_whose_last_writes_were_lost_counts(
    step, candidate, workplace: Path, clock: str
) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    client = mlflow.MlflowClient()
    passed = client.get_model_version(MODEL, "1").tags
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    for key in (names.RESULT, names.REASON, names.GATE_RUN):
        client.set_model_version_tag(MODEL, "1", key, passed[key])
    client.set_registered_model_alias(MODEL, "candidate", "1")
    if clock == "a day behind":
        rejected = (workplace / "outputs" / "run-id").read_text()
        with closing(sqlite3.connect("mlruns/mlflow.db", isolation_level=None)) as database:
            earlier = "UPDATE runs SET start_time = start_time - 86400000 WHERE run_uuid = ?"
            database.execute(earlier, [rejected])
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert "version 1 of 'mistral-7b-lora' was rejected: tuned_bleu" in result.stderr
