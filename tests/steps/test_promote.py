import os
from pathlib import Path

import mlflow
import pytest

from loraline.tracking import registry
from loraline.tracking.tags import AUDIT, CHAMPION, GATE_RUN, RESULT

MODEL = "mistral-7b-lora"


def alias(name: str) -> str | None:
    result = registry.version_of(mlflow.MlflowClient(), MODEL, name)
    return str(result.version) if result else None


def aliases() -> tuple[str | None, str | None, str | None]:
    return alias("candidate"), alias("champion"), alias("previous")


def history() -> list[str]:
    tags = mlflow.MlflowClient().get_registered_model(MODEL).tags
    return [tags[key] for key in sorted(tags) if key.startswith(f"{AUDIT}.")]


@pytest.fixture
def passed(step, candidate, workplace: Path):
    """Let a candidate pass the gate; return the gate's run ID."""

    def make(name: str) -> str:
        gain = {"gain_over_champion_levenshtein_low": 0.1}
        tags = {CHAMPION: alias("champion") or ""}
        step("quality_gate", "--run-id", candidate(name=name, tags=tags, **gain))
        assert (workplace / "outputs" / "result").read_text() == "passed"
        return (workplace / "outputs" / "run-id").read_text()

    return make


def test_the_candidate_becomes_the_champion_and_the_gates_run_is_handed_over(
    step, workplace: Path, passed
) -> None:
    gate = passed("one")
    result = step("promote", "--model", MODEL, "--version", "1")
    assert result.exit_code == 0
    assert aliases() == ("1", "1", None)
    assert (workplace / "outputs" / "run-id").read_text() == gate
    assert (workplace / "outputs" / "version").read_text() == "1"


def test_the_champion_before_stays_as_previous_and_comes_back(
    step, workplace: Path, passed
) -> None:
    first = passed("one")
    step("promote", "--model", MODEL)
    passed("two")
    step("promote", "--model", MODEL)
    assert aliases() == ("2", "2", "1")
    assert step("promote", "--model", MODEL, "--rollback").exit_code == 0
    assert aliases() == ("2", "1", None)
    assert (workplace / "outputs" / "run-id").read_text() == first


def test_an_old_champion_that_is_judged_again_can_still_be_gone_back_to(
    step, candidate, passed, workplace: Path
) -> None:
    first = candidate(name="one")
    step("quality_gate", "--run-id", first)
    promoted_by = (workplace / "outputs" / "run-id").read_text()
    step("promote", "--model", MODEL)
    passed("two")
    step("promote", "--model", MODEL)
    step("quality_gate", "--run-id", first)
    assert (workplace / "outputs" / "result").read_text() == "failed"
    assert aliases() == ("2", "2", "1")
    result = step("promote", "--model", MODEL, "--rollback")
    assert result.exit_code == 0
    assert "warning: a later gate rejected version 1: gain_over_champion" in result.stderr
    assert aliases() == ("2", "1", None)
    assert (workplace / "outputs" / "run-id").read_text() == promoted_by
    assert mlflow.get_run(promoted_by).data.tags[RESULT] == "passed"


def test_a_previous_that_was_never_promoted_is_held_to_its_last_verdict(step, passed) -> None:
    passed("one")
    passed("two")
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(MODEL, "champion", "2")
    client.set_model_version_tag(MODEL, "1", RESULT, "failed")
    result = step("promote", "--model", MODEL, "--rollback")
    assert result.exit_code == 2
    assert "was rejected" in result.stderr
    assert alias("champion") == "2"


def test_every_move_leaves_a_trace(step, passed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    passed("one")
    step("promote", "--model", MODEL)
    passed("two")
    step("promote", "--model", MODEL)
    monkeypatch.setenv("LORALINE_WORKFLOW_NAME", "rollback-x7")
    step("promote", "--model", MODEL, "--rollback")
    assert sorted(history()) == [
        "champion 1 -> 2: promoted by ada",
        "champion 2 -> 1: rolled back by rollback-x7",
        "champion none -> 1: promoted by ada",
    ]
    client = mlflow.MlflowClient()
    two = client.get_model_version(MODEL, "2").tags
    assert two[registry.PROMOTED] == "by ada, replacing 1"
    assert two[registry.ROLLED_BACK] == "by rollback-x7, to 1"


def test_a_repeated_promotion_changes_nothing(step, passed) -> None:
    passed("one")
    for number in range(3):
        result = step("promote", "--model", MODEL)
        assert result.exit_code == 0
        said = (
            f"models:/{MODEL}/1 is already the champion" if number else f"champion models:/{MODEL}"
        )
        assert result.stdout.startswith(said)
    assert aliases() == ("1", "1", None)
    assert len(history()) == 1


def test_a_first_champion_has_nothing_to_go_back_to(step, passed) -> None:
    passed("one")
    passed("two")
    assert aliases() == ("2", None, "1")
    step("promote", "--model", MODEL)
    assert aliases() == ("2", "2", None)
    result = step("promote", "--model", MODEL, "--rollback")
    assert result.exit_code == 2
    assert "has no previous: nothing to go back to" in result.stderr


def test_a_second_rollback_does_not_go_two_steps_back(step, passed) -> None:
    for name in ("one", "two", "three"):
        passed(name)
        step("promote", "--model", MODEL)
    step("promote", "--model", MODEL, "--rollback")
    assert step("promote", "--model", MODEL, "--rollback").exit_code == 2
    assert alias("champion") == "2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--version", "2"), "'mistral-7b-lora' has no version 2; found: 1"),
        (("--rollback", "--version", "1"), "--rollback takes neither"),
    ],
)
def test_what_was_not_reviewed_is_not_promoted(step, passed, arguments, message: str) -> None:
    passed("one")
    result = step("promote", "--model", MODEL, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert alias("champion") is None
    assert [outcome.name for outcome in mlflow.MlflowClient().search_registered_models()] == [MODEL]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1", "the candidate of 'mistral-7b-lora' is version 2, not 1: review it first"),
        ("7", "registered model 'mistral-7b-lora' has no version 7; found: 1, 2"),
        ("best", "registered model 'mistral-7b-lora' has no version best; found: 1, 2"),
    ],
)
def test_a_named_version_that_is_not_the_candidate_is_refused_with_its_reason(
    step, passed, version: str, message: str
) -> None:
    passed("one")
    passed("two")
    result = step("promote", "--model", MODEL, "--version", version)
    assert result.exit_code == 2
    assert message in result.stderr
    assert alias("champion") is None


def test_a_named_version_that_was_rejected_after_all_is_refused_with_its_verdict(
    step, candidate, workplace: Path
) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    result = step("promote", "--model", MODEL, "--version", "1")
    assert result.exit_code == 2
    assert result.stderr == (
        "promote: version 1 of 'mistral-7b-lora' was rejected: tuned_bleu 70 is not at least 99\n"
    )


@pytest.mark.parametrize(
    ("number", "by"), [(0, "root"), (54321, "somebody without a name (user ID 54321)")]
)
def test_who_promoted_is_told_where_no_variable_names_them(
    step, passed, monkeypatch: pytest.MonkeyPatch, number: int, by: str
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    passed("one")
    monkeypatch.setattr(os, "getuid", lambda: number)
    assert step("promote", "--model", MODEL).exit_code == 0
    assert history() == [f"champion none -> 1: promoted by {by}"]


def test_a_version_that_was_rolled_back_has_to_be_named(step, passed) -> None:
    for name in ("one", "two"):
        passed(name)
        step("promote", "--model", MODEL)
    step("promote", "--model", MODEL, "--rollback")
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert "version 2 of 'mistral-7b-lora' was rolled back by" in result.stderr
    assert alias("champion") == "1"
    assert step("promote", "--model", MODEL, "--version", "2").exit_code == 0
    assert alias("champion") == "2"
    assert registry.ROLLED_BACK not in mlflow.MlflowClient().get_model_version(MODEL, "2").tags


def test_a_version_that_no_gate_passed_is_not_promoted(step, passed) -> None:
    passed("one")
    client = mlflow.MlflowClient()
    client.delete_model_version_tag(MODEL, "1", GATE_RUN)
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert "did not come through quality_gate" in result.stderr
    client.set_model_version_tag(MODEL, "1", RESULT, "failed")
    assert "was rejected" in step("promote", "--model", MODEL).stderr
    assert (alias("champion"), history()) == (None, [])


def test_nothing_moves_where_the_run_id_cannot_be_written(step, passed, workplace: Path) -> None:
    passed("one")
    (workplace / "file").write_text("")
    result = step("promote", "--model", MODEL, "--out-dir", "file/outputs")
    assert result.exit_code == 2
    assert "--out-dir file/outputs cannot be written: Not a directory" in result.stderr
    assert alias("champion") is None


@pytest.mark.parametrize("name", ["nothing", "a'b", "a/b", ""])
def test_an_unknown_model_is_refused_with_the_names_of_the_known(
    step, workplace: Path, passed, name: str
) -> None:
    passed("one")
    result = step("promote", "--model", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"promote: there is no registered model {name!r} in ")
    assert result.stderr.endswith(f"found: {MODEL}\n")


def test_where_no_model_is_registered_the_command_that_makes_one_is_named(
    step, workplace: Path
) -> None:
    result = step("promote", "--model", "mine")
    assert result.exit_code == 2
    assert result.stderr.endswith("found: none; make pipeline makes one\n")


def test_a_model_without_a_candidate_is_refused_in_one_sentence(step, workplace: Path) -> None:
    mlflow.MlflowClient().create_registered_model("nothing")
    result = step("promote", "--model", "nothing")
    assert result.exit_code == 2
    assert result.stderr == (
        "promote: registered model 'nothing' has no candidate: nothing to promote\n"
    )
    assert not (workplace / "outputs").exists()


def test_a_candidate_that_a_person_rejects_loses_its_alias_and_says_why(
    step, passed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "ada")
    passed("one")
    passed("two")
    result = step("promote", "--model", MODEL, "--version", "2", "--reject", "Units\nare missing.")
    assert result.exit_code == 0
    assert "rejected models:/mistral-7b-lora/2, by ada" in result.output
    assert aliases() == (None, None, "1")
    assert history() == ["candidate 2: rejected by ada: Units are missing."]
    version = mlflow.MlflowClient().get_model_version(MODEL, "2")
    assert version.tags[registry.REJECTED] == "by ada: Units are missing."


def test_a_rejected_candidate_that_passes_again_is_promoted_by_its_number_alone(
    step, passed
) -> None:
    passed("one")
    step("promote", "--model", MODEL, "--version", "1", "--reject", "No.")
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(MODEL, "candidate", "1")
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2 and "was rejected by" in result.stderr
    assert step("promote", "--model", MODEL, "--version", "1").exit_code == 0
    assert registry.REJECTED not in client.get_model_version(MODEL, "1").tags


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--reject", "No."], "--reject needs the --version"),
        (["--rollback", "--reject", "No."], "--rollback takes neither"),
        (["--version", "2", "--reject", "No."], "has no version 2"),
        (["--version", "1", "--reject", "x" * 2000], "1 to 1000 characters"),
        (["--version", "1", "--reject", " "], "1 to 1000 characters"),
        # As from a variable that is not set: it must not promote what it was to reject.
        (["--version", "1", "--reject", ""], "1 to 1000 characters"),
        (["--reject", ""], "--reject needs the --version"),
        (["--rollback", "--reject", ""], "--rollback takes neither"),
    ],
    ids=[
        *("no version", "with rollback", "other version", "long", "blank", "empty"),
        *("empty and no version", "empty with rollback"),
    ],
)
def test_a_rejection_without_what_it_needs_moves_nothing(
    words: list[str], sentence: str, step, passed
) -> None:
    passed("one")
    result = step("promote", "--model", MODEL, *words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert alias("candidate") == "1"


def test_without_a_candidate_there_is_nothing_to_reject(step, passed) -> None:
    passed("one")
    step("promote", "--model", MODEL, "--version", "1", "--reject", "No.")
    result = step("promote", "--model", MODEL, "--version", "1", "--reject", "No.")
    assert result.exit_code == 2
    assert result.stderr == (
        f"promote: registered model '{MODEL}' has no candidate: nothing to reject\n"
    )


def test_the_champion_is_not_rejected(step, passed) -> None:
    passed("one")
    step("promote", "--model", MODEL)
    result = step("promote", "--model", MODEL, "--version", "1", "--reject", "No.")
    assert result.exit_code == 2
    assert "is the champion by now" in result.stderr
