"""What a failure of the store or of its artifacts means: wait, or mend something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraline.errors import TryAgain, UserError
from loraline.tracking import store


def s3_error(code: str, call: str = "PutObject") -> Exception:
    """botocore's, as MLflow passes it on."""
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException

    try:
        raise ClientError({"Error": {"Code": code, "Message": "no"}}, call)
    except ClientError as error:
        try:
            raise MlflowException(f"Failed to list artifacts in s3://bucket: {error}") from error
        except MlflowException as passed_on:
            return passed_on


@pytest.mark.parametrize("code", ["500", "503", "SlowDown", "InternalError", "RequestTimeout"])
def test_an_artifact_store_that_is_unwell_passes(workplace: Path, code: str) -> None:
    error = s3_error(code)
    assert store.is_outage(error)
    assert store.refusal(error) is None


@pytest.mark.parametrize(
    "words",
    [
        'Could not connect to the endpoint URL: "http://127.0.0.1:9/bucket"',
        "Connection was closed before we received a valid response from endpoint URL",
        'Read timeout on endpoint URL: "http://127.0.0.1:9/bucket"',
    ],
)
def test_an_artifact_store_that_is_away_passes_though_only_its_words_are_kept(words: str) -> None:
    assert store.is_outage(RuntimeError(f"The following failures occurred: {words}"))


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", ""])
def test_an_artifact_store_that_refuses_is_said(workplace: Path, code: str) -> None:
    error = s3_error(code, "ListObjectsV2")
    assert not store.is_outage(error)
    message = store.refusal(error)
    assert message is not None
    assert message.startswith("the artifact store of MLflow at sqlite:///")
    assert f"refused ListObjectsV2 ({code or 'without a reason'}): look at its bucket" in message


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (401, "requires a user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "does not allow reader to do this: ask its administrator"),
    ],
)
def test_a_server_that_wants_other_credentials_is_said(
    code: int,
    sentence: str,
    answering: Callable[[int, str], str],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering(code, "no"))
    with pytest.raises(UserError, match=sentence):
        store.connect()


def test_an_outage_without_a_text_is_said_by_its_name(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import requests

    def fail() -> None:
        raise requests.exceptions.ConnectionError

    monkeypatch.setattr(mlflow, "MlflowClient", fail)
    with pytest.raises(TryAgain, match="does not answer: ConnectionError"):
        store.connect()


def test_other_errors_are_none_of_it() -> None:
    assert store.refusal(RuntimeError("An error occurred")) is None


def test_a_store_whose_artifacts_a_server_keeps_is_asked_through_that_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(store.uri())
    experiment = mlflow.create_experiment("of a server", "mlflow-artifacts:/1")
    with mlflow.start_run(experiment_id=experiment), pytest.raises(MlflowException) as refused:
        mlflow.log_text("a", "a.txt")
    assert store.refusal(refused.value) == (
        f"the experiment in {store.uri()} was made by an MLflow server, which keeps its files: set "
        "MLFLOW_TRACKING_URI to that server, or MLFLOW_EXPERIMENT_NAME to another name"
    )


def test_an_empty_name_of_an_experiment_is_none(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    client = store.connect()
    assert client.get_experiment_by_name("vllm-lora-training") is not None


def test_a_folder_in_the_place_of_a_database_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs")
    with pytest.raises(UserError, match=r"runs is a folder, and no file"):
        store.connect()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
