import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from ports import free_port

from loraline.answering.hf import answers
from loraline.base.encoding import Encoder
from loraline.base.load import load
from loraline.base.locate import locate
from loraline.contract import BASE_CONFIG, WEIGHTS, Contract, folder_digest, read, sha256, write
from loraline.delivery import example, kube, local, local_gateway, manifest, placement
from loraline.errors import UserError
from loraline.records import from_prompt
from loraline.serving import arguments, preflight
from tests.gateway.conftest import TEXT
from tests.gateway.stub import Stub, served

ROOT = Path(__file__).parents[2]


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


serve_local = script(ROOT / "steps/serve_local.py")

PROMPTS = {"text": "Question: {question}", "vision": "Write the formula as LaTeX."}
QUESTIONS = ["Who are you?", "What is the capital of France?", "Name a colour."]
ANSWER_TOKENS = 24
PIXELS = (7056, 12544)


@dataclass
class Registered:
    """An adapter in the model registry, and what its base gives with and without it."""

    contract: Contract
    digest: str
    """Of the adapter's folder."""

    manifest: Path
    images: list[bytes | None]
    tokens: dict[str, list[list[int]]]
    """Greedy tokens by model name, one list a question."""

    store: str


def drawing(width, height):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.line((2, 2, width - 4, height - 3), fill="black", width=3)
    pen.ellipse((width // 3, height // 4, width // 2, height // 2), outline="red", width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def register(folder, modality, name, tiny_base):
    """Make a base and a random adapter, log and register it as the training step does."""
    import mlflow
    import peft
    import torch

    from loraline.tracking.store import connect

    torch.manual_seed(0)
    vision = modality == "vision"
    shutil.copytree(tiny_base("qwen3-vl" if vision else "mistral"), folder / "base")
    base = locate(str(folder / "base"), None)
    model = load(base, modality, quantization="none", dtype="float32")
    targets = r".*(language_model|visual).*\.(q_proj|v_proj|down_proj|qkv|linear_fc1)"
    targets = targets if vision else ["q_proj", "v_proj", "down_proj"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for key, weight in tuned.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.1)
    adapter = folder / "adapter"
    tuned.save_pretrained(adapter)
    shutil.copy(base.path / "config.json", adapter / BASE_CONFIG)

    pixels = PIXELS if vision else (None, None)
    encoder = Encoder(
        base.path, modality, min_pixels=pixels[0], max_pixels=pixels[1], chat_template=None
    )
    contract = Contract(
        base=str(folder / "base"),
        base_revision=base.revision,
        modality=modality,
        architecture=base.architecture,
        prompt=PROMPTS[modality],
        chat_template=encoder.chat_template,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
        max_length=128,
        max_new_tokens=ANSWER_TOKENS,
        dtype="float32",
        r=4,
        lora_alpha=8,
        target_modules=("down_proj", "q_proj", "v_proj"),
        trains_vision=vision,
        adapter_sha256=sha256(adapter / WEIGHTS),
    )
    write(contract, adapter)

    sizes = [(28, 28), (300, 200), (168, 28)]
    images = [drawing(*size) for size in sizes] if vision else [None] * len(QUESTIONS)
    rows = [
        encoder.encode(from_prompt(contract.prompt, question, "an answer", image))
        for question, image in zip(QUESTIONS, images, strict=True)
    ]

    def greedy(model):
        result = answers(model, encoder, rows, ANSWER_TOKENS, lambda done, text: None)
        return [answer.tokens for answer in result]

    tuned.eval()
    tokens = {name: greedy(tuned)}
    with tuned.disable_adapter():
        tokens["base"] = greedy(tuned)

    connect()
    code = folder / "model.py"
    code.write_text(
        "import mlflow\n\n\nclass Adapter(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input):\n        return []\n\n\n"
        "mlflow.models.set_model(Adapter())\n"
    )
    logged = mlflow.pyfunc.log_model(
        name="adapter",
        python_model=str(code),
        artifacts={"adapter": str(adapter)},
        pip_requirements=[],
        registered_model_name=name,
    )
    version = logged.registered_model_version
    pod = manifest.server(
        contract,
        model_name=name,
        version=version,
        digest=folder_digest(adapter),
        image="loraline:test",
        placement=placement.Placement(cpu=True),
    )
    (folder / "vllm.yaml").write_text(kube.to_yaml(manifest.render(pod)))
    return Registered(
        contract,
        folder_digest(adapter),
        folder / "vllm.yaml",
        images,
        tokens,
        os.environ["MLFLOW_TRACKING_URI"],
    )


def test_a_server_beside_the_adapters_is_not_taken_for_it(tmp_path):
    """The adapter's objects come first in a manifest."""
    objects = [
        {"kind": kind, "metadata": {"name": name}}
        for name in ("lora-a", "lora-a-tasks")
        for kind in ("ConfigMap", "Deployment")
    ]
    (tmp_path / "vllm.yaml").write_text(kube.to_yaml(objects))
    read_objects = local.read(tmp_path / "vllm.yaml")
    assert {each["metadata"]["name"] for each in read_objects.values()} == {"lora-a"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="module")
def text(store, tmp_path_factory, tiny_base):
    return register(tmp_path_factory.mktemp("text"), "text", "tiny-text", tiny_base)


@pytest.fixture(scope="module")
def vision(store, tmp_path_factory, tiny_base):
    return register(tmp_path_factory.mktemp("vision"), "vision", "tiny-vision", tiny_base)


def ask(url, model, registered, row):
    """Greedy tokens of one of the registered adapter's rows, without the end token."""
    content = registered.contract.prompt.replace("{question}", QUESTIONS[row])
    image = registered.images[row]
    if image is not None:
        data = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        picture = {"type": "image_url", "image_url": {"url": data}}
        content = [picture, {"type": "text", "text": content}]
    choice = post(url, model, content)["choices"][0]
    tokens = choice["token_ids"]
    return tokens[:-1] if choice["finish_reason"] == "stop" else tokens


def post(url, model, content):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def assert_serves_what_was_measured(url, registered):
    """Base and adapter, asked one by one and all at once, give their own tokens."""
    measured = registered.tokens
    adapter = next(name for name in measured if name != "base")
    assert measured[adapter] != measured["base"]
    wanted = [(name, row) for row in range(len(QUESTIONS)) for name in measured]
    for name, row in wanted:
        assert ask(url, name, registered, row) == measured[name][row], (name, row)
    with ThreadPoolExecutor(len(wanted)) as pool:
        result = pool.map(lambda each: ask(url, each[0], registered, each[1]), wanted)
        assert list(result) == [measured[name][row] for name, row in wanted]


def descendants(pid):
    """Processes that `pid` started, and those that they started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
    result = {pid}
    while more := {child for child, parent in parents.items() if parent in result} - result:
        result |= more
    return result - {pid}


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_text_adapter_is_served_as_measured_with_the_gateway_until_sigterm(text):
    port, gateway_port = free_port(), free_port()
    command = [sys.executable, ROOT / "steps/serve_local.py", text.manifest, "--port", port]
    command += ["--gateway-port", gateway_port, "--question", QUESTIONS[0]]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        curls = (line for line in process.stdout if line.startswith("curl "))
        direct, through = next(curls, None), next(curls, None)
        assert direct, "the server did not start"
        assert through, "the gateway did not start"
        assert_serves_what_was_measured(f"http://127.0.0.1:{port}", text)
        answer = subprocess.run(shlex.split(direct), capture_output=True, check=True)
        assert json.loads(answer.stdout)["model"] == "tiny-text"
        said = json.loads(answer.stdout)["choices"][0]["message"]["content"]
        answer = subprocess.run(shlex.split(through), capture_output=True, check=True)
        predicted = json.loads(answer.stdout)
        assert predicted["predictions"][0]["caption"] == said.strip(), "the gateway's prompt"
        assert predicted["model_uri"] == "models:/tiny-text/1"
    finally:
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.endswith("stopped\n")
    assert len(started) >= 4, "the API server, its engine and the engine's worker, the gateway"
    # They are killed at the latest when the command ends; the system may take a moment.
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline, "a process of the server is left"
        time.sleep(0.1)


@pytest.mark.slow
def test_vision_adapter_is_served_as_measured_and_fetches_no_images(vision, tmp_path):
    image = tmp_path / "drawing.png"
    image.write_bytes(vision.images[0])
    with local.start(vision.manifest, free_port(), tmp_path / "serve") as server:
        assert (server.base, server.adapter) == ("base", "tiny-vision")
        assert_serves_what_was_measured(server.url, vision)
        body = serve_local.request(server, "", image)
        result = post(server.url, body["model"], body["messages"][0]["content"])
        tokens = result["choices"][0]["token_ids"]
        assert tokens[: len(vision.tokens["tiny-vision"][0])] == vision.tokens["tiny-vision"][0]
        remote = [{"type": "image_url", "image_url": {"url": f"{server.url}/metrics"}}]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(server.url, "tiny-vision", remote)
        assert refused.value.code == 400


@contextmanager
def in_front_of(stub_port, folder, contract=None):
    """A server that `local` would have started, where a stub of vLLM answers."""
    (folder / "config").mkdir(parents=True)
    (folder / "config/contract.json").write_text(json.dumps(contract or TEXT))
    url, uri = f"http://127.0.0.1:{stub_port}", "models:/tiny-lora/3"
    yield local.Running(url, "base", "tiny-lora", uri, contract or TEXT, folder, None)


@pytest.fixture(scope="module")
def stub_port():
    with served(Stub().app()) as url:
        yield int(url.rpartition(":")[2])


def test_the_gateway_knows_the_adapters_prompt_and_version(stub_port, tmp_path):
    port = free_port()
    with in_front_of(stub_port, tmp_path) as server, local_gateway.start(server, port) as gateway:
        curl = shlex.split(serve_local.predict(server, gateway, "It's -F 'odd'; @here", None))
        answer = subprocess.run(curl, capture_output=True, check=True)
        assert json.loads(answer.stdout)["model_uri"] == "models:/tiny-lora/3"
    # It ends its answers first, and then as the signal says.
    assert gateway.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("GATEWAY_RATE", "often", "exit code 2: gateway: GATEWAY_RATE: String should match"),
        ("GATEWAY_RAT", "1/minute", "exit code 2: gateway: GATEWAY_RAT is not a setting"),
    ],
)
def test_a_gateway_that_does_not_start_says_why(
    stub_port, tmp_path, monkeypatch, variable, value, sentence
):
    monkeypatch.setenv(variable, value)
    with (
        in_front_of(stub_port, tmp_path) as server,
        pytest.raises(UserError) as refused,
        local_gateway.start(server, free_port()),
    ):
        pass
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).endswith("--no-gateway serves without it")


def test_a_server_or_gateway_that_is_killed_ends_the_other(stub_port, tmp_path):
    with in_front_of(stub_port, tmp_path) as server:
        sleeping = subprocess.Popen(["sleep", "600"], start_new_session=True)
        server = replace(server, process=sleeping)
        try:
            with local_gateway.start(server, free_port()) as gateway:
                gateway.process.kill()
                gateway.process.wait()
                with pytest.raises(UserError, match="the gateway was ended by SIGKILL"):
                    serve_local.wait(server, gateway)
        finally:
            sleeping.kill()
            sleeping.wait()
    with pytest.raises(UserError, match="vLLM was ended by SIGKILL"):
        serve_local.wait(server, None)


MISTAKES = {
    (): "name a manifest or a registered model with --model, and not both",
    ("{manifest}", "--model", "tiny-text"): "and not both",
    ("{manifest}", "--alias", "champion"): "--alias needs --model to say of which",
    ("{manifest}", "--port", "8080"): "--port and --gateway-port are both 8080",
    (
        "{manifest}",
        "--gateway-port",
        "{taken}",
    ): "choose another with --gateway-port (with make, GATEWAY_PORT=)",
    ("--model", "nobody"): "nobody",
    ("--model", "tiny-text", "--alias", "champion"): "no version of registered model 'tiny-text' "
    "has this alias; found: none",
}


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: " ".join(words) or "nothing")
def test_a_mistake_on_the_command_line_is_one_sentence(text, words):
    from click.testing import CliRunner

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        given = [word.format(manifest=text.manifest, taken=taken) for word in words]
        ended = CliRunner().invoke(serve_local.serve_local, given)
    assert ended.exit_code == 2
    (sentence,) = ended.stderr.splitlines()
    assert MISTAKES[words] in sentence


def refused(*words):
    from click.testing import CliRunner

    ended = CliRunner().invoke(serve_local.serve_local, [str(word) for word in words])
    assert ended.exit_code == 2, ended.output
    (sentence,) = ended.stderr.splitlines()
    return sentence


def test_an_image_for_texts_and_a_question_without_a_place_are_refused(
    text, vision, tmp_path, monkeypatch
):
    def started(*_, **__):
        raise UserError("it would have started")

    monkeypatch.setattr(local, "start", started)
    image = tmp_path / "image.png"
    image.write_bytes(drawing(28, 28))
    alone = ("--no-gateway", "--port", free_port())
    sentence = refused(text.manifest, *alone, "--image", image)
    assert "--image: the adapter's base takes texts and no images" in sentence
    sentence = refused(vision.manifest, *alone, "--question", "Who?")
    assert "--question: the adapter's prompt has no place for a question" in sentence
    for words in (
        (text.manifest, "--question", "Who?"),
        (vision.manifest, "--image", image),
    ):
        assert "it would have started" in refused(*words, *alone)


def test_taken_port_is_named(text):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(
                UserError, match=rf"port {port} .* choose another with --port \(with make, PORT=\)"
            ),
            local.start(text.manifest, port),
        ):
            pass


def test_file_that_is_no_manifest_is_refused(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("kind: Pod\n")
    with (
        pytest.raises(UserError, match=r"other\.yaml is not a manifest of deploy_vllm"),
        local.start(other, free_port()),
    ):
        pass


@pytest.mark.parametrize("data", ["{}", "{contract.json: no JSON}", "~"])
def test_objects_of_another_program_are_refused(tmp_path, data):
    other = tmp_path / "other.yaml"
    other.write_text(f"kind: ConfigMap\ndata: {data}\n---\nkind: Deployment\n")
    with pytest.raises(UserError, match=r"its ConfigMap has no contract\.json"):
        local.contract_of(local.read(other))


@pytest.mark.parametrize("form", ["way-kserve", "way-production-stack"])
def test_manifest_for_another_runner_tells_how_to_get_one_of_ours(form):
    other = ROOT / f"tests/loraline/delivery/manifests/{form}.yaml"
    with (
        pytest.raises(UserError, match=r"render it again with deploy_vllm --format deployment"),
        local.start(other, free_port()),
    ):
        pass


@pytest.mark.parametrize("content", ["- a list\n", "kind: [x]", "{", "words", b"\xff\xfe"])
def test_file_without_objects_is_no_manifest(content, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"is not a manifest of deploy_vllm: it has no objects"):
        local.read(other)


def edited(registered, folder, old, new):
    copy = folder / "edited.yaml"
    copy.write_text(registered.manifest.read_text().replace(old, new))
    return copy


def test_missing_base_folder_is_named_before_anything_starts(text, tmp_path):
    copy = edited(text, tmp_path, f"- {text.contract.base}\n", "- /no/such/base\n")
    with (
        pytest.raises(UserError, match=r"base model folder '/no/such/base' of .* does not exist"),
        local.start(copy, free_port()),
    ):
        pass


HUB_BASE, COMMIT = "mistralai/Mistral-7B-v0.1", "0123456789abcdef" * 2 + "01234567"


def started(contract, where, folder, monkeypatch):
    """Commands that fetch an adapter of a manifest, and the arguments and environment of vLLM."""
    pod = manifest.server(
        contract, model_name="tiny-text", version=1, digest="ab" * 32, image="i", placement=where
    )
    (folder / "vllm.yaml").write_text(kube.to_yaml(manifest.render(pod)))
    fetched = []
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    monkeypatch.setattr(local, "has_gpu", lambda: False)
    monkeypatch.setattr(local, "fetch", fetched.append)
    monkeypatch.setattr(local, "executable", lambda: [sys.executable, "-c", program])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match="vLLM ended"), local.start(folder / "vllm.yaml", 0):
        pass
    return fetched, *json.loads((folder / "serve/vllm.log").read_text())


def test_a_base_of_the_hub_on_a_claim_is_loaded_from_the_hub(text, tmp_path, monkeypatch):
    hub = text.contract.model_copy(update={"base": HUB_BASE, "base_revision": COMMIT})
    where = placement.Placement(base_volume="bases", cpu=True)
    fetched, args, variables = started(hub, where, tmp_path, monkeypatch)
    assert "--merge" not in fetched[0]
    assert args[0] == HUB_BASE
    assert args[args.index("--revision") + 1] == COMMIT, "that was measured"
    assert "HF_HUB_OFFLINE" not in variables


def test_a_base_of_a_folder_on_a_claim_is_loaded_from_the_folder(text, tmp_path, monkeypatch):
    where = placement.Placement(base_volume="bases", cpu=True)
    _, args, variables = started(text.contract, where, tmp_path, monkeypatch)
    assert args[0] == text.contract.base
    assert "--revision" not in args
    assert variables["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("base", ["a folder", HUB_BASE])
def test_an_adapter_is_merged_into_the_base_of_this_machine(text, base, tmp_path, monkeypatch):
    contract = text.contract
    if base == HUB_BASE:
        contract = contract.model_copy(update={"base": HUB_BASE, "base_revision": COMMIT})
    where = placement.Placement(base_volume="bases", cpu=True, merged=True)
    fetched, args, _ = started(contract, where, tmp_path, monkeypatch)
    assert fetched[0][fetched[0].index("--merge") + 1] == contract.base
    assert args[0] == fetched[0][fetched[0].index("--out-dir") + 1]
    assert "--revision" not in args


def test_what_a_gpu_cannot_apply_is_refused_before_anything_starts(text, monkeypatch):
    monkeypatch.setattr(local, "has_gpu", lambda: True)
    with (
        pytest.raises(UserError, match="float32, and vLLM applies adapters on GPUs in bfloat16"),
        local.start(text.manifest, free_port()),
    ):
        pass


@pytest.mark.slow
def test_server_that_dies_at_the_start_leaves_its_cause_in_one_sentence(text, tmp_path):
    copy = edited(text, tmp_path, "- '8'\n", "- '4'\n")
    started = time.monotonic()
    with (
        pytest.raises(UserError) as error,
        local.start(copy, free_port(), tmp_path / "serve"),
    ):
        pass
    assert time.monotonic() - started < 60
    assert "argument --max-lora-rank: invalid choice: 4" in str(error.value)
    assert str(tmp_path / "serve/vllm.log") in str(error.value)
    assert "\n" not in str(error.value)


def test_adapter_with_another_digest_is_not_served(text, tmp_path):
    wrong = hashlib.sha256(b"another").hexdigest()
    copy = edited(text, tmp_path, text.digest, wrong)
    with (
        pytest.raises(UserError) as error,
        local.start(copy, free_port(), tmp_path / "serve"),
    ):
        pass
    assert f"has digest {text.digest}, expected {wrong}" in str(error.value)
    assert not list((tmp_path / "serve/adapters").glob("*/*"))


def fetch(model, digest, out_dir, *options):
    command = [sys.executable, ROOT / "steps/fetch_adapter.py", "--model", model]
    command += ["--sha256", digest, "--out-dir", out_dir, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_fetched_adapter_is_whole_and_replaces_another(text, tmp_path):
    out_dir = tmp_path / "v1"
    out_dir.mkdir()
    (out_dir / "leftover.txt").write_text("of another adapter")
    (out_dir / ".loraline-adapter").write_text("its digest")
    ended = fetch("models:/tiny-text/1", text.digest, out_dir)
    assert ended.returncode == 0, ended.stderr
    assert read(out_dir) == text.contract
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert not (out_dir / "leftover.txt").exists()


def test_folder_with_files_of_others_is_left_alone(text, tmp_path):
    (tmp_path / "important.txt").write_text("mine")
    ended = fetch("models:/tiny-text/1", text.digest, tmp_path)
    assert ended.returncode == 2
    assert f"--out-dir {tmp_path} holds other files" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["important.txt"]


def test_adapter_that_the_server_would_refuse_is_not_fetched(text, tmp_path):
    digest = text.digest
    ended = fetch("models:/tiny-text/1", digest, tmp_path / "v1", "--max-lora-rank", "1")
    assert ended.returncode == 2
    assert "models:/tiny-text/1 cannot be served: r: rank 4 is not between 1 and 1" in ended.stderr
    assert not (tmp_path / "v1").exists()


def test_adapter_is_fetched_once(text, tmp_path):
    digest = text.digest
    for word in ("is in", "is already in"):
        assert word in fetch("models:/tiny-text/1", digest, tmp_path / "v1").stdout
    (tmp_path / "v1" / WEIGHTS).unlink()
    assert "is already in" not in fetch("models:/tiny-text/1", digest, tmp_path / "v1").stdout


def test_adapter_is_merged_into_its_base(text, tmp_path):
    from transformers import AutoTokenizer

    digest, base = text.digest, text.contract.base
    ended = fetch("models:/tiny-text/1", digest, tmp_path / "v1", "--merge", base)
    assert ended.returncode == 0, ended.stderr
    merged = locate(str(tmp_path / "v1"), None)
    model = load(merged, "text", quantization="none", dtype="float32")
    encoder = Encoder(merged.path, "text", chat_template=text.contract.chat_template)
    rows = [encoder.encode(from_prompt(PROMPTS["text"], each, "an answer")) for each in QUESTIONS]
    result = answers(model, encoder, rows, ANSWER_TOKENS, lambda done, message: None)
    assert [answer.tokens for answer in result] == text.tokens["tiny-text"]
    assert AutoTokenizer.from_pretrained(tmp_path / "v1").eos_token == "</s>"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("tiny-text", "is not of the form models:/NAME/VERSION"),
        ("models:/tiny-text@champion", "is not of the form models:/NAME/VERSION"),
        ("models:/tiny-text/99", "is not a registered version"),
        ("models:/nobody/1", "is not a registered version"),
    ],
)
def test_version_that_does_not_exist_is_a_mistake_of_the_user(text, tmp_path, model, sentence):
    ended = fetch(model, text.digest, tmp_path / "v1")
    assert ended.returncode == 2
    assert re.search(sentence, ended.stderr)
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "v1").exists()


def test_files_that_could_run_code_are_left_out_or_refused(text, tmp_path, capsys):
    fetch_adapter = script(ROOT / "steps/fetch_adapter.py")
    adapter = tmp_path / "adapter"
    shutil.copytree(text.manifest.parent / "adapter", adapter)
    for name in ("adapter_model.bin", "optimizer.pt", "modeling.py"):
        (adapter / name).write_bytes(b"")
    fetch_adapter.leave_out_pickles(adapter, "models:/tiny-text/1")
    assert not (adapter / "adapter_model.bin").exists()
    assert not (adapter / "optimizer.pt").exists()
    assert "holds optimizer.pt, which could run code; it is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"modeling\.py: is none of an adapter's files"):
        preflight.check(adapter, read(adapter), "models:/tiny-text/1")


def test_only_the_listed_arguments_change_without_a_gpu():
    args = ["base", "--max-loras", "1", "--gpu-memory-utilization", "0.90", "--dtype", "float32"]
    assert arguments.on_cpu(args) == [
        *("base", "--max-loras", "2", "--kv-cache-memory-bytes", "1G", "--dtype", "float32")
    ]
    assert arguments.on_cpu(arguments.on_cpu(args)) == arguments.on_cpu(args), (
        "a manifest for a CPU stays"
    )


def test_a_version_is_shown_by_a_question_that_its_evaluation_answered_right(candidate, step):
    import mlflow

    evaluated = candidate(name="one")
    columns = {
        "row": [0, 1, 2],
        "question": ["Say: Where is it now?", "Say: Who?", "Say: What?"],
        "reference": ["here", "Ann", "it"],
        "tuned": ["there", " Ann", "that"],
    }
    with mlflow.start_run(run_id=evaluated):
        mlflow.log_table(columns, "predictions.json")
    step("quality_gate", "--run-id", evaluated)

    shown = example.of_version("models:/mistral-7b-lora/1", "Say: {question}")
    assert shown == [("Who?", None, "Ann")]
    # A server runs without its store, too.
    assert example.of_version("models:/mistral-7b-lora/2", "Say: {question}") == []
