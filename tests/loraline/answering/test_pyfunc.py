"""The registered model, loaded and served by MLflow alone."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from ports import free_port

from loraline import contract
from loraline.answering import hf, logged_model
from loraline.base.encoding import Encoder
from loraline.base.load import attach, load
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.evaluation import measurement
from loraline.records import from_prompt

ROOT = Path(__file__).parents[3]
DATA = ROOT / "test_data"
PAGE = (ROOT / "docs" / "evaluation.md").read_text().partition("## The registered model")[2]
EXPORT, PYTHON, SERVE = re.findall(r"```\w*\n(.+?)```", PAGE.partition("\n## ")[0], re.DOTALL)
"""What the documentation tells to type, in its order."""

QUESTIONS = ["Where does Mieb Ishul live?", "Who is it?", "What is the answer to this, then?"]
IMAGES = [DATA / "vision" / "images" / f"000{i}.png" for i in (1, 2, 3)]


@dataclass(frozen=True)
class Logged:
    """A logged adapter, what to ask it, and what it has to answer."""

    uri: str
    place: Path
    """Folder in which the steps ran, with the store that they make when none is named."""

    asked: list[str]
    wanted: list[str]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.place}/mlruns/mlflow.db"

    def outside(self) -> dict[str, str]:
        """The activated environment of a shell that knows of no store."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        return {key: value for key, value in result.items() if key != "MLFLOW_TRACKING_URI"}


@pytest.fixture(scope="module", params=["text", "vision"])
def logged(
    request: pytest.FixtureRequest, script, tmp_path_factory: pytest.TempPathFactory
) -> Logged:
    modality = request.param
    place = tmp_path_factory.mktemp(modality)
    engines = script("tests/loraline/answering/both_engines.py")
    base = locate(str(DATA / modality / "base"), None)
    limits = {"min_pixels": 4704, "max_pixels": 4704} if modality == "vision" else {}
    encoder = Encoder(base.path, modality, **limits)
    adapter = engines.make_adapter(base, modality, place / "adapter", 1)
    agreed = engines.agreed(base, encoder, modality, adapter)
    agreed = agreed.model_copy(update={"prompt": "Please: {question}"})
    contract.write(agreed, adapter)
    (adapter / contract.BASE_CONFIG).write_text(json.dumps(base.config))

    (place / "mlruns").mkdir()
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlruns/mlflow.db")
    experiment = mlflow.create_experiment("adapters", artifact_location=(place / "a").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        logged_model.log(adapter, agreed, "standard")
    model_id = mlflow.get_run(run.info.run_id).data.tags["loraline.model_id"]
    version = mlflow.register_model(f"models:/{model_id}", "tiny-mistral-lora").version
    mlflow.MlflowClient().set_registered_model_alias("tiny-mistral-lora", "candidate", version)

    if modality == "text":
        asked = QUESTIONS
        result = [from_prompt(agreed.prompt, question, "") for question in asked]
    else:
        images = [path.read_bytes() for path in IMAGES]
        asked = [base64.b64encode(image).decode() for image in images]
        result = [from_prompt(agreed.prompt, "", "", image) for image in images]
    model = load(base, modality, quantization="none", dtype="float32")
    answers = hf.answers(
        attach(model, adapter),
        encoder,
        [encoder.encode(record) for record in result],
        agreed.max_new_tokens,
        lambda units, remark: None,
    )
    return Logged(f"models:/{model_id}", place, asked, [answer.text for answer in answers])


@pytest.fixture
def loaded(logged: Logged) -> Any:
    mlflow.set_tracking_uri(logged.store)
    return mlflow.pyfunc.load_model(logged.uri)


def test_it_answers_with_the_prompt_it_was_trained_with(logged: Logged, loaded: Any) -> None:
    assert loaded.predict(logged.asked) == logged.wanted
    assert loaded.predict(pd.DataFrame({"asked": logged.asked})) == logged.wanted
    assert loaded.predict(logged.asked[0]) == logged.wanted[:1]
    assert any(logged.wanted)


def test_answers_can_be_cut_shorter_and_never_made_longer(logged: Logged, loaded: Any) -> None:
    short = loaded.predict(logged.asked, params={"max_new_tokens": 1})
    assert sum(map(len, short)) < sum(map(len, logged.wanted))
    assert loaded.predict(logged.asked, params={"max_new_tokens": 10**6}) == logged.wanted
    assert loaded.predict(logged.asked, params={"max_new_tokens": None}) == logged.wanted


def test_signature_and_parameters_are_declared(logged: Logged, loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert [column.type.name for column in signature.inputs] == ["string"]
    assert [column.type.name for column in signature.outputs] == ["string"]
    (parameter,) = signature.params
    assert (parameter.name, parameter.default) == ("max_new_tokens", 24)
    with pytest.raises(mlflow.MlflowException, match="Invalid parameters"):
        loaded.predict(logged.asked, params={"max_new_tokens": "many"})


def test_it_runs_on_a_4_bit_base_as_in_training(logged: Logged) -> None:
    mlflow.set_tracking_uri(logged.store)
    model = mlflow.pyfunc.load_model(logged.uri, model_config={"quantize": True})
    kinds = {type(module).__name__ for module in model.unwrap_python_model().model.modules()}
    assert "Linear4bit" in kinds
    assert len(model.predict(logged.asked)) == len(logged.asked)


@pytest.mark.parametrize("logged", ["vision"], indirect=True)
def test_an_image_may_come_as_a_data_url_and_text_is_refused(logged: Logged, loaded: Any) -> None:
    urls = [f"data:image/png;base64,{image}" for image in logged.asked]
    assert loaded.predict(urls) == logged.wanted
    with pytest.raises(UserError, match="takes images in base64"):
        loaded.predict(["What is this?"])
    with pytest.raises(UserError, match="input 0 is not base64"):
        loaded.predict(["Où est-ce?"])


@pytest.mark.parametrize("logged", ["vision"], indirect=True)
def test_base64_may_come_in_lines_as_the_program_of_that_name_prints_it(
    logged: Logged, loaded: Any
) -> None:
    printed = [
        subprocess.run(["base64", path], capture_output=True, text=True, check=True).stdout
        for path in IMAGES
    ]
    assert all(text.count("\n") > 1 for text in printed)
    assert loaded.predict(printed) == logged.wanted


@pytest.mark.parametrize("logged", ["vision"], indirect=True)
def test_what_is_no_image_is_named_by_its_place(logged: Logged, loaded: Any) -> None:
    def asked(image: bytes) -> list[str]:
        return [logged.asked[0], base64.b64encode(image).decode()]

    message = "input 1 is no image: expected a file such as PNG or JPEG, in base64"
    for content in (b"", b"%PDF-1.7"):
        with pytest.raises(UserError, match=message):
            loaded.predict(asked(content))
    cut = IMAGES[0].read_bytes()[:200]
    with pytest.raises(UserError, match="input 1 is an image that cannot be read"):
        loaded.predict(asked(cut))


@pytest.mark.parametrize("logged", ["text"], indirect=True)
def test_a_prompt_without_room_for_its_answer_is_refused(logged: Logged, loaded: Any) -> None:
    with pytest.raises(UserError, match=r"input 1 is too long: \d+ tokens with its prompt, and"):
        loaded.predict([logged.asked[0], "who " * 3000])


@pytest.mark.parametrize("logged", ["text"], indirect=True)
def test_the_longest_prompt_is_the_one_that_evaluation_would_ask(
    logged: Logged, loaded: Any
) -> None:
    model = loaded.unwrap_python_model()

    def taken(words: int) -> bool:
        with suppress(UserError):
            return bool(model.encoded_input(0, "who " * words, model.contract.max_new_tokens))
        return False

    def askable(words: int) -> bool:
        record = from_prompt(model.contract.prompt, "who " * words, "")
        return bool(measurement.askable([record], model.encoder, model.contract))

    result = [(taken(words), askable(words)) for words in range(0, 3000, 25)]
    assert set(result) == {(True, True), (False, False)}


@pytest.mark.parametrize("logged", ["text"], indirect=True)
def test_a_word_for_quantize_is_not_taken_for_yes(logged: Logged) -> None:
    mlflow.set_tracking_uri(logged.store)
    with pytest.raises(UserError, match="'quantize' is 'no'; accepted: True, False"):
        mlflow.pyfunc.load_model(logged.uri, model_config={"quantize": "no"})


@pytest.mark.parametrize("logged", ["text"], indirect=True)
def test_what_it_does_not_understand_is_refused_in_words(logged: Logged, loaded: Any) -> None:
    model = loaded.unwrap_python_model()
    with pytest.raises(UserError, match="takes one column, and was given 2"):
        model.predict(None, pd.DataFrame({"a": ["x"], "b": ["y"]}))
    with pytest.raises(UserError, match="input 1 is None, and has to be a text"):
        model.predict(None, ["x", None])
    with pytest.raises(UserError, match="an answer has at least one token"):
        loaded.predict(logged.asked, params={"max_new_tokens": 0})


@pytest.mark.parametrize("logged", ["text"], indirect=True)
def test_the_documented_lines_load_it_from_the_store_of_the_steps(logged: Logged) -> None:
    program = PYTHON.replace("model.predict", "answers = model.predict") + "print(len(answers))"
    shell = subprocess.run(
        ["bash", "-ec", f"{EXPORT}\npython - <<'END'\n{program}\nEND"],
        cwd=logged.place,
        env=logged.outside(),
        capture_output=True,
        text=True,
    )
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.splitlines()[-1] == "1"
    assert list(logged.place.rglob("mlflow.db")) == [logged.place / "mlruns" / "mlflow.db"]


def test_the_readme_and_the_page_name_the_same_store() -> None:
    assert EXPORT in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_mlflow_serves_it_with_the_documented_line(logged: Logged) -> None:
    port = free_port()
    command = f"{EXPORT}\nexec {SERVE.strip()} --host 127.0.0.1 --port {port} --workers 1"
    server = subprocess.Popen(
        ["bash", "-ec", command],
        cwd=logged.place,
        env=logged.outside(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = {"inputs": logged.asked, "params": {"max_new_tokens": 24}}
        assert ask(port, body, server) == {"predictions": logged.wanted}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def ask(port: int, body: dict[str, Any], server: subprocess.Popen[bytes]) -> Any:
    """Send one request, as soon as the server takes one."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(360):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not start")
