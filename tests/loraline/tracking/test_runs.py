import errno
import os
import socket
import time
from pathlib import Path

import pytest
from ports import free_port

from loraline.errors import TryAgain, UserError
from loraline.tracking import lease, run_profile, runs, store, tags
from loraline.tracking.tags import (
    GIT_SHA,
    IMAGE,
    PIPELINE,
    STEP,
    UPSTREAM,
    WORKFLOW_NAME,
    WORKFLOW_UID,
)

ROOT = Path(__file__).parents[3]


def test_a_run_knows_its_step_its_upstream_and_its_pipeline(workplace: Path) -> None:
    client = store.connect()
    with runs.open_run("prepare_data", name="data", fingerprint="a") as first:
        pass
    upstream = runs.upstream_run(client, first.info.run_id, "prepare_data")
    with runs.open_run("train_qlora", name="train", fingerprint="b", upstream=upstream) as second:
        pass
    result = runs.upstream_run(client, second.info.run_id, "train_qlora")
    assert result.data.tags[UPSTREAM] == first.info.run_id
    assert result.data.tags[PIPELINE] == first.info.run_id
    assert runs.ancestor(client, result, "prepare_data").info.run_id == first.info.run_id


@pytest.mark.parametrize("text", ["{", "[" * 100_000], ids=["cut", "deep"])
def test_a_profile_that_is_none_is_said(text: str, workplace: Path) -> None:
    client = store.connect()
    with runs.open_run("train_qlora", name="train", fingerprint="b") as run:
        client.log_text(run.info.run_id, text, "profile.json")
    with pytest.raises(UserError, match=r"profile\.json is no profile: "):
        run_profile.of_training(client, client.get_run(run.info.run_id))


def test_the_workflow_identity_comes_from_the_environment(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_WORKFLOW_NAME", "loraline-x7")
    monkeypatch.setenv("LORALINE_WORKFLOW_UID", "uid-1")
    monkeypatch.setenv("LORALINE_IMAGE", "localhost/loraline:dev")
    monkeypatch.setenv("LORALINE_GIT_SHA", "abc")
    client = store.connect()
    with runs.open_run("prepare_data", name="data", fingerprint="a") as run:
        pass
    tags = client.get_run(run.info.run_id).data.tags
    assert tags[WORKFLOW_NAME] == "loraline-x7"
    assert tags[WORKFLOW_UID] == tags[PIPELINE] == "uid-1"
    assert tags[IMAGE] == "localhost/loraline:dev"
    assert tags[GIT_SHA] == "abc"


def test_an_unknown_run_id_is_refused(workplace: Path) -> None:
    with pytest.raises(UserError, match=r"--run-id 'nonsense' is not a run of MLflow at sqlite"):
        runs.upstream_run(store.connect(), "nonsense", "prepare_data")


def test_a_run_of_another_step_is_refused(workplace: Path) -> None:
    client = store.connect()
    with runs.open_run("prepare_data", name="data", fingerprint="a") as run:
        pass
    with pytest.raises(UserError, match="is a run of prepare_data, expected one of evaluate"):
        runs.upstream_run(client, run.info.run_id, "evaluate")


def test_an_upstream_run_that_is_gone_is_named(workplace: Path) -> None:
    client = store.connect()
    tags = {UPSTREAM: "0" * 32}
    with runs.open_run("evaluate", name="e", fingerprint="a", tags=tags) as run:
        pass
    result = client.get_run(run.info.run_id)
    message = (
        f"run {run.info.run_id} came from run {'0' * 32} .its tag loraline.upstream., which is"
    )
    with pytest.raises(UserError, match=message):
        runs.ancestor(client, result, "train_qlora")


def test_a_failed_run_is_neither_handed_over_nor_reused(workplace: Path) -> None:
    client = store.connect()
    with (
        pytest.raises(ZeroDivisionError),
        runs.open_run("prepare_data", name="data", fingerprint="a") as run,
    ):
        _ = 1 / 0
    assert runs.finished_run(client, "prepare_data", "a") is None
    with pytest.raises(UserError, match="is FAILED, expected a FINISHED run"):
        runs.upstream_run(client, run.info.run_id, "prepare_data")


def test_a_stopped_run_is_killed_rather_than_failed(workplace: Path) -> None:
    client = store.connect()
    with (
        pytest.raises(TryAgain),
        runs.open_run("prepare_data", name="data", fingerprint="a") as run,
    ):
        raise TryAgain("preempted")
    assert client.get_run(run.info.run_id).info.status == "KILLED"


HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("process", "workflow", "hours", "status"),
    [
        (f"{HERE}:99999999:1", "", 0, "KILLED"),
        (f"{HERE}:{os.getppid()}:{lease.start_ticks(os.getppid())}", "", 0, "RUNNING"),
        (f"{HERE}:{os.getpid()}:{lease.start_ticks(os.getpid())}", "", 0, "KILLED"),
        ("elsewhere:1:5", "", 0, "RUNNING"),
        ("elsewhere:1:5", "", 25, "KILLED"),
        ("elsewhere:1:5", "this", 0, "KILLED"),
    ],
    ids=[
        "its process has ended",
        "its process lives",
        "it is this process' own, whose answer was lost",
        "it is at work elsewhere, perhaps",
        "it began elsewhere a day ago",
        "it is this workflow's try before",
    ],
)
def test_a_run_that_cannot_end_is_ended_by_the_next_of_its_inputs(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: str,
    workflow: str,
    hours: int,
    status: str,
) -> None:
    monkeypatch.setenv("LORALINE_WORKFLOW_UID", "this")
    client = store.connect()
    experiment = client.get_experiment_by_name("vllm-lora-training")
    kept = {tags.STEP: "evaluate", tags.FINGERPRINT: "f", tags.PROCESS: process}
    began = int((time.time() - hours * 3600) * 1000)
    dead = client.create_run(
        experiment.experiment_id, began, kept | {tags.WORKFLOW_UID: workflow}
    ).info.run_id
    with runs.open_run("evaluate", name="e", fingerprint="another"):
        pass
    assert client.get_run(dead).info.status == "RUNNING"
    with runs.open_run("evaluate", name="e", fingerprint="f"):
        pass
    assert client.get_run(dead).info.status == status


def test_the_latest_finished_run_with_the_same_inputs_is_found(workplace: Path) -> None:
    client = store.connect()
    for _ in range(2):
        with runs.open_run("evaluate", name="e", fingerprint="same") as run:
            pass
    result = runs.finished_run(client, "evaluate", "same")
    assert result is not None and result.info.run_id == run.info.run_id
    assert runs.finished_run(client, "evaluate", "other") is None
    assert runs.finished_run(client, "quality_gate", "same") is None


def test_a_run_whose_upstream_run_was_deleted_is_not_reused(workplace: Path) -> None:
    client = store.connect()
    with runs.open_run("prepare_data", name="d", fingerprint="data") as upstream:
        pass
    with runs.open_run("train_qlora", name="t", fingerprint="same", upstream=upstream):
        pass
    assert runs.finished_run(client, "train_qlora", "same") is not None
    client.delete_run(upstream.info.run_id)
    assert runs.finished_run(client, "train_qlora", "same") is None


def test_artifacts_have_an_absolute_place(workplace: Path) -> None:
    client = store.connect()
    experiment = client.get_experiment_by_name("vllm-lora-training")
    assert experiment is not None
    assert experiment.artifact_location == (workplace / "mlruns" / "artifacts").as_uri()


def test_an_absent_server_is_try_again_within_seconds(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(TryAgain, match="does not answer") as refusal:
        store.connect()
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["mysql", "mysql+pymysql", "postgresql+psycopg2"])
def test_a_store_whose_driver_is_not_installed_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:canary@127.0.0.1:9/mlflow")
    with pytest.raises(UserError, match=r"needs the package '.*', which is not installed") as error:
        store.connect()
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "file:///tmp/x",
        "ftp://x",
        "http://127.0.0.1:notaport",
        "http://h:99999",
        "http://[",
    ],
)
def test_a_store_of_an_unknown_kind_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="is not accepted"):
        store.connect()


@pytest.mark.parametrize(
    ("uri", "message"), [("http://", "names no host"), ("postgresql://h:port/x", "cannot be used")]
)
def test_an_address_that_leads_nowhere_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=message):
        store.connect()


def test_a_file_that_is_no_database_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "broken.db").write_text("not a database, but long enough to be read as one" * 99)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/broken.db")
    with pytest.raises(UserError, match=r"broken\.db"):
        store.connect()


def test_the_run_id_is_written_last_and_whole(tmp_path: Path) -> None:
    runs.hand_over(tmp_path / "out", "r1", result="passed")
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert files == {"run-id": "r1", "result": "passed"}


def test_a_pod_is_told_of_a_server_but_of_no_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://s3:9000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    assert store.pod_environment() == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert set(store.pod_environment()) == {"MLFLOW_S3_ENDPOINT_URL"}
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://key:canary@s3:9000")
    assert store.pod_environment() == {"MLFLOW_S3_ENDPOINT_URL": "http://s3:9000"}


def test_another_programs_run_in_the_environment_is_left_alone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.connect()
    with runs.open_run("prepare_data", name="d", fingerprint="a") as data:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", data.info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"loraline.step": "theirs"}')
    with runs.open_run("train_qlora", name="t", fingerprint="b", upstream=data) as run:
        assert run.info.run_id != data.info.run_id and run.info.run_name == "t"
    assert client.get_run(data.info.run_id).data.tags[STEP] == "prepare_data"
    assert client.get_run(run.info.run_id).data.tags[STEP] == "train_qlora"


def test_a_lineage_that_bites_its_tail_is_refused(workplace: Path) -> None:
    client = store.connect()
    with runs.open_run("evaluate", name="e", fingerprint="a") as one:
        pass
    with runs.open_run("evaluate", name="e", fingerprint="b", upstream=one) as two:
        pass
    client.set_tag(one.info.run_id, UPSTREAM, two.info.run_id)
    with pytest.raises(UserError, match=r"comes from itself by its tags loraline.upstream"):
        runs.ancestor(client, client.get_run(two.info.run_id), "train_qlora")


def test_a_store_that_another_process_has_locked_is_try_again(workplace: Path) -> None:
    import sqlite3

    store.connect()
    other = sqlite3.connect(workplace / "mlruns" / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TryAgain, match="database is locked"):
            store.connect()
    finally:
        other.execute("ROLLBACK")


def test_the_documented_postgresql_address_finds_the_pinned_driver() -> None:
    from sqlalchemy.engine import make_url

    pins = (ROOT / "constraints.txt").read_text()
    driver = make_url("postgresql://mlflow:x@postgres/mlflow").get_dialect().driver
    assert f"\n{driver}==" in pins and f"\n{driver}-binary==" in pins


def logged(folder: Path, *files: str) -> str:
    """The ID of a logged model with these files, which hold their names."""
    import mlflow

    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    client = store.connect()
    model = mlflow.initialize_logged_model("adapter")
    client.log_model_artifacts(model.model_id, str(folder))
    return str(model.model_id)


def test_of_a_logged_model_the_adapter_alone_is_downloaded(workplace: Path) -> None:
    model = logged(workplace / "model", "MLmodel", "code/a.py", "artifacts/adapter/contract.json")
    with runs.logged_adapter(model) as adapter:
        assert [file.name for file in adapter.iterdir()] == ["contract.json"]
        fetched = [file for file in adapter.parents[1].rglob("*") if file.is_file()]
        assert fetched == [adapter / "contract.json"]


@pytest.mark.parametrize("at", ["file", pytest.param("server", marks=pytest.mark.slow)])
def test_a_logged_model_without_an_adapter_is_named(
    at: str, workplace: Path, request: pytest.FixtureRequest
) -> None:
    import mlflow

    if at == "server":
        mlflow.set_tracking_uri(request.getfixturevalue("mlflow_server"))
    model = logged(workplace / "model", "MLmodel")
    with (
        pytest.raises(UserError, match=f"models:/{model} holds no adapter in artifacts/adapter"),
        runs.logged_adapter(model),
    ):
        pass


def test_what_a_failed_download_left_behind_hides_no_sentence(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    """MLflow's threads may write other files while the folder is taken away."""
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    removed = os.rmdir

    def busy(path: str, **options: int) -> None:
        if Path(path).name == "adapter":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        removed(path, **options)

    def fails(_: ModelsArtifactRepository, path: str, dst_path: str) -> str:
        Path(dst_path, path).mkdir(parents=True)
        raise FileNotFoundError("contract.json")

    model = logged(workplace / "model", "artifacts/adapter/contract.json")
    monkeypatch.setattr(ModelsArtifactRepository, "download_artifacts", fails)
    monkeypatch.setattr(os, "rmdir", busy)
    with (
        pytest.raises(UserError, match=rf"models:/{model} cannot be downloaded: contract.json"),
        runs.logged_adapter(model),
    ):
        pass
