import json
import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml

from loraline.tracking import runs, tags


@pytest.fixture
def gate_run(step, workplace: Path, candidate) -> str:
    step("quality_gate", "--run-id", candidate())
    return (workplace / "outputs" / "run-id").read_text()


def test_the_manifest_pins_the_registered_version(step, workplace: Path, gate_run: str) -> None:
    assert step("deploy_vllm", "--run-id", gate_run).exit_code == 0
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    kinds = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(kinds) == {
        *("ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
    }
    annotations = kinds["Deployment"]["metadata"]["annotations"]
    assert annotations["loraline/registered-version"] == "models:/mistral-7b-lora/1"
    assert "@candidate" not in text
    deployed = (workplace / "outputs" / "run-id").read_text()
    assert mlflow.artifacts.load_text(f"runs:/{deployed}/vllm.yaml") == text


def test_the_same_version_renders_the_same_bytes(step, workplace: Path, gate_run: str) -> None:
    step("deploy_vllm", "--run-id", gate_run)
    first = (workplace / "outputs" / "vllm.yaml").read_bytes()
    assert "reused" in step("deploy_vllm", "--run-id", gate_run).stdout
    assert (workplace / "outputs" / "vllm.yaml").read_bytes() == first
    step("deploy_vllm", "--run-id", gate_run, "--force")
    assert (workplace / "outputs" / "vllm.yaml").read_bytes() == first


def test_a_manifest_that_was_changed_in_the_store_is_not_reused(
    step, workplace: Path, gate_run: str
) -> None:
    step("deploy_vllm", "--run-id", gate_run)
    manifest = workplace / "outputs" / "vllm.yaml"
    deployed = (workplace / "outputs" / "run-id").read_text()
    changed = manifest.read_text().replace("vllm/vllm-openai", "evil.example.com/vllm")
    mlflow.MlflowClient().log_text(deployed, changed, "vllm.yaml")
    manifest.unlink()

    result = step("deploy_vllm", "--run-id", gate_run)

    assert result.exit_code == 2
    assert "what deploy_vllm rendered is not what is here: vllm.yaml has digest" in result.stderr
    assert not manifest.exists()
    assert step("deploy_vllm", "--run-id", gate_run, "--force").exit_code == 0
    assert "evil" not in manifest.read_text()


def test_a_rejected_candidate_is_not_deployed(step, workplace: Path, candidate) -> None:
    step("quality_gate", "--run-id", candidate(tuned_perplexity=5.0))
    gate_run = (workplace / "outputs" / "run-id").read_text()
    result = step("deploy_vllm", "--run-id", gate_run)
    assert result.exit_code == 2
    assert "rejected its candidate (tuned_perplexity 5 is not at most 2)" in result.stderr
    assert not (workplace / "outputs" / "vllm.yaml").exists()


def rendered(workplace: Path) -> dict[str, dict]:
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def container(workplace: Path) -> dict:
    return rendered(workplace)["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def test_what_the_command_line_says_is_in_the_manifest(
    step, workplace: Path, gate_run: str
) -> None:
    places = ("--namespace", "models", "--base-volume", "bases", "--replicas", "3")
    watched = ("--service-monitor", "--prometheus", "http://prometheus:9090")
    image = ("--server-image", "localhost/vllm:v0.32.0")
    card = ("--gpu", "L4", "--gpus", "2")
    assert (
        step("deploy_vllm", "--run-id", gate_run, *places, *watched, *image, *card).exit_code == 0
    )
    result = rendered(workplace)
    assert {"ScaledObject", "ServiceMonitor"} <= set(result)
    assert {entry["metadata"]["namespace"] for entry in result.values()} == {"models"}
    affinity = result["Deployment"]["spec"]["template"]["spec"]["affinity"]
    assert "NVIDIA-L4" in str(affinity), "a card that is named is the one it is placed on"
    assert container(workplace)["args"][0] == "/bases/base"
    assert container(workplace)["image"] == "localhost/vllm:v0.32.0"
    step("deploy_vllm", "--run-id", gate_run, "--format", "production-stack", "--merged")
    values = yaml.safe_load((workplace / "outputs" / "vllm.yaml").read_text())
    assert "--merge" in values["servingEngineSpec"]["modelSpec"][0]["initContainer"]["command"]


MISTAKES = {
    ("--gpu", "GTX-1080"): "--gpu 'GTX-1080' is not known; accepted: cpu, T4,",
    ("--prometheus", "http://p:9090"): "--prometheus needs --namespace",
    ("--gpus", "2"): "--gpus and --gpu-fraction need --gpu",
    ("--gpu", "cpu", "--server-image", "mine", "--gpus", "2"): "need --gpu to say of which card",
    ("--format", "kserve", "--replicas", "2"): "kserve scales and is watched in its own ways",
    ("--format", "production-stack", "--namespace", "models"): "give it to helm install",
    ("--gpu", "L4", "--gpu-fraction", "2"): "a fraction of a card is above 0 and up to 1",
    ("--gpu", "L4", "--gpu-fraction", "0.01"): "does not fit 0.01 of one L4 (21.99 GiB x",
    ("--calibrate", "server.log"): "--calibrate needs --gpu",
    ("--beside", "champion"): "no other version of mistral-7b-lora has this alias",
    ("--follow", "nobody"): "mistral-7b-lora has no such alias; it has candidate",
    ("--server-image", "vllm/vllm-openai:latest"): "names no version",
    ("--git", "nowhere"): "--git nowhere: git is not installed or the folder does not exist",
    ("--format", "kserve", "--apply"): "--apply needs --format deployment",
    ("--task", "ocr-text"): "--task and --tasks-dir need --tasks",
    ("--tasks", "beside", "--format", "kserve"): "--tasks is of --format deployment, not of kserve",
    ("--tasks", "beside", "--task", "ocr"): "task 'ocr' is not known; accepted: computer,",
    ("--gateway-host", "ask.example.org"): "--gateway-host needs --gateway",
    ("--gateway", "--format", "kserve"): "--gateway is of --format deployment, not of kserve",
    ("--gateway", "--gateway-set", "RATE"): "--gateway-set 'RATE' is not NAME=VALUE",
    ("--gateway", "--gateway-set", "GATEWAY_RAT=1"): "GATEWAY_RAT is not a setting; docs/gateway",
    ("--gateway", "--gateway-set", "GATEWAY_RATE=often"): "GATEWAY_RATE: String should match",
    ("--gateway", "--gateway-set", "GATEWAY_DRAIN_S=soon"): "GATEWAY_DRAIN_S: Input should be a",
    ("--gateway", "--gateway-set", "GATEWAY_OIDC_ISSUER=https://a"): "are set together",
    ("--gateway", "--gateway-set", "GATEWAY_REDIS_URL=redis://a"): "reads it from a Secret",
    ("--gateway", "--gateway-host", "Ask Me"): "host of the gateway 'Ask Me' is not accepted",
    ("--gateway", "--gateway-parent", "a/b"): "--gateway-parent needs --gateway-host or --ui-host",
    ("--ui",): "--ui needs --gateway",
    ("--gateway", "--ui-host", "page.example.org"): "--ui-host needs --ui",
    ("--gateway", "--ui", "--ui-host", "My page"): "host of the page 'My page' is not accepted",
    ("--gateway", "--ui", "--ui-desk", "desk"): "--ui-desk is not an address such as http://desk",
    ("--tasks", "beside"): "shows images or videos, and test_data/text/base is a text base",
}


def test_a_mistake_on_the_command_line_is_one_sentence(
    step, workplace: Path, gate_run: str
) -> None:
    (workplace / "server.log").write_text("")
    for options, message in MISTAKES.items():
        result = step("deploy_vllm", "--run-id", gate_run, *options)
        assert result.exit_code == 2, options
        *warnings, sentence = result.stderr.splitlines()
        assert message in sentence
        assert all(line.startswith("warning: ") for line in warnings)


SUMMARY = """
title: Summary
description: Says in one sentence what a text says.
inputs: text
variables: {text: null}
prompts: {default: "Sum up: {text}"}
answer: text
parser: text
limits: {max_new_tokens: 300}
"""


def test_tasks_have_a_server_beside_the_adapters_or_widen_its_own(
    step, workplace: Path, gate_run: str
) -> None:
    (workplace / "tasks").mkdir()
    (workplace / "tasks" / "summary.yaml").write_text(SUMMARY)
    mine = ("--tasks-dir", "tasks", "--task", "summary")
    message = step("deploy_vllm", "--run-id", gate_run, "--tasks", "beside", *mine)
    assert message.exit_code == 0, message.stderr
    assert "tasks are served by lora-mistral-7b-lora-tasks, which has no adapter" in message.stdout
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    servers = [each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    args = [each["spec"]["template"]["spec"]["containers"][0]["args"] for each in servers]
    assert [each[each.index("--max-model-len") + 1] for each in args] == ["512", "2048"]
    assert ["--enable-lora" in each for each in args] == [True, False]
    message = step("deploy_vllm", "--run-id", gate_run, "--tasks", "instead", *mine)
    assert "the adapter was measured with other limits: tokens 512 to 2048" in message.stdout
    assert "--enable-lora" in container(workplace)["args"]


def test_the_gateway_stands_in_front_of_the_server(step, workplace: Path, gate_run: str) -> None:
    (workplace / "tasks").mkdir()
    (workplace / "tasks" / "summary.yaml").write_text(SUMMARY)
    mine = ("--gateway", "--gateway-set", "GATEWAY_RATE=60/minute", "--tasks-dir", "tasks")
    shared = ("--gateway-volume", "kept", "--gateway-redis-port", "6379")
    seen = ("--gateway-image", "registry.example/gateway:1", "--gateway-replicas", "6")
    way = ("--gateway-host", "ask.example.org", "--gateway-parent", "ingress/public")
    made = step("deploy_vllm", "--run-id", gate_run, *mine, *shared, *seen, *way)
    assert made.exit_code == 0, made.stderr
    assert "of the gateway" not in made.stderr
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    entries = {(each["metadata"]["name"], each["kind"]): each for each in yaml.safe_load_all(text)}
    front = "lora-mistral-7b-lora-gateway"
    assert {kind for name, kind in entries if name == front} == {
        *("ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"),
        *("HorizontalPodAutoscaler", "HTTPRoute"),
    }
    container = entries[front, "Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/gateway:1"
    assert {"name": "GATEWAY_RATE", "value": "60/minute"} in container["env"]
    contracts = entries[front, "ConfigMap"]["data"]
    assert set(contracts) == {"mistral-7b-lora.json", "task.summary.yaml"}
    assert (
        contracts["mistral-7b-lora.json"]
        == entries["lora-mistral-7b-lora", "ConfigMap"]["data"]["contract.json"]
    ), "asked as it was measured"
    bare = step("deploy_vllm", "--run-id", gate_run, "--gateway")
    assert "rendered" in bare.stdout and "no registry; --gateway-image" in bare.stderr


def test_the_page_stands_in_front_of_the_gateway(step, workplace: Path, gate_run: str) -> None:
    way = ("--ui-host", "page.example.org", "--ui-desk", "http://desk:8090")
    image = ("--ui-image", "registry.example/page:1")
    made = step("deploy_vllm", "--run-id", gate_run, "--gateway", "--ui", *way, *image)
    assert made.exit_code == 0, made.stderr
    assert "of the page" not in made.stderr
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    entries = {(each["metadata"]["name"], each["kind"]): each for each in yaml.safe_load_all(text)}
    page = "lora-mistral-7b-lora-page"
    assert {kind for name, kind in entries if name == page} == {
        *("Deployment", "Service", "NetworkPolicy", "Ingress"),
    }
    container = entries[page, "Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/page:1"
    assert {"name": "UI_DESK", "value": "http://desk:8090"} in container["env"]
    bare = step("deploy_vllm", "--run-id", gate_run, "--gateway", "--ui")
    assert "rendered" in bare.stdout and "no registry; --ui-image" in bare.stderr


def test_what_no_card_can_apply_is_served_by_cpus(step, workplace: Path, candidate) -> None:
    step("quality_gate", "--run-id", candidate("smoke-text"))
    gate_run = (workplace / "outputs" / "run-id").read_text()
    assert "rendered, for CPUs" in step("deploy_vllm", "--run-id", gate_run).stdout
    args = container(workplace)["args"]
    assert args[args.index("--dtype") + 1] == "float32"
    assert container(workplace)["image"] == "vllm/vllm-openai-cpu:v0.32.0"
    assert "limits" not in container(workplace)["resources"]
    refused = step("deploy_vllm", "--run-id", gate_run, "--gpu", "L4")
    assert refused.exit_code == 2
    assert "measured in float32, and vLLM applies adapters on GPUs in bfloat16" in refused.stderr
    assert "rendered)" in step("deploy_vllm", "--run-id", gate_run, "--merged").stdout
    assert container(workplace)["resources"]["limits"] == {"nvidia.com/gpu": 1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gpu", "L4", "--gpus", "0"), "0 is not in the range x>=1"),
        (("--gpu", "L4", "--gpus", "-3"), "-3 is not in the range x>=1"),
        (("--gateway", "--gateway-replicas", "1"), "1 is not in the range x>=2"),
        (("--gateway", "--gateway-redis-port", "0"), "0 is not in the range 1<=x<=65535"),
    ],
)
def test_a_number_out_of_its_range_is_refused(
    step, gate_run: str, options: tuple[str, ...], sentence: str
) -> None:
    result = step("deploy_vllm", "--run-id", gate_run, *options)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_what_the_manifest_will_need_is_said(
    step, gate_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = step("deploy_vllm", "--run-id", gate_run).stderr
    (alone,) = message.splitlines()
    assert alone.startswith("warning: the manifest serves on this machine (make serve); ")
    monkeypatch.setenv("LORALINE_IMAGE", "registry.example/loraline:1")
    message = step("deploy_vllm", "--run-id", gate_run).stderr
    assert [line.partition(": ")[2].split(";")[0] for line in message.splitlines()] == [
        "the pod has no MLflow server to fetch the adapter from",
        "vllm/vllm-openai:v0.32.0 is not pinned by digest",
    ]
    image = f"vllm/vllm-openai:v0.32.0@sha256:{'0' * 64}"
    message = step("deploy_vllm", "--run-id", gate_run, "--server-image", image).stderr
    assert len(message.splitlines()) == 1


def test_a_log_that_leaves_no_room_is_not_remembered(step, workplace: Path, gate_run: str) -> None:
    log = workplace / "server.log"
    log.write_text("Model loading took 0.1 GiB\nAvailable KV cache memory: -4.00 GiB\n")
    result = step("deploy_vllm", "--run-id", gate_run, "--gpu", "L4", "--calibrate", log)
    assert result.exit_code == 2
    assert "does not fit" in result.stderr and "learned from the log given" in result.stderr
    assert step("deploy_vllm", "--run-id", gate_run, "--gpu", "L4").exit_code == 0


def test_what_a_log_taught_counts_where_a_card_is_chosen_too(
    step, workplace: Path, gate_run: str
) -> None:
    step("deploy_vllm", "--run-id", gate_run)
    first = rendered(workplace)["Deployment"]["metadata"]["annotations"]["loraline/sized-for"]
    card = first.split()[2].strip(",")
    model = mlflow.MlflowClient().get_run(gate_run).data.tags[tags.MODEL_NAME]
    revision = rendered(workplace)["Deployment"]["metadata"]["annotations"][
        "loraline/base-revision"
    ]
    tag = f"loraline.activation.{card}"
    mlflow.MlflowClient().set_registered_model_tag(model, tag, f"{revision} 999")
    step("deploy_vllm", "--run-id", gate_run)
    second = rendered(workplace)["Deployment"]["metadata"]["annotations"]["loraline/sized-for"]
    assert second.split()[2].strip(",") != card
    refused = step("deploy_vllm", "--run-id", gate_run, "--gpu", card)
    assert refused.exit_code == 2
    assert f"learned from tag {tag} of registered model {model}; delete it" in refused.stderr


def test_a_log_is_learned_from_once_and_remembered(step, workplace: Path, gate_run: str) -> None:
    log = workplace / "server.log"
    log.write_text("Model loading took 0.1 GiB\nAvailable KV cache memory: 15.00 GiB\n")
    card = ("--gpu", "L4")
    step("deploy_vllm", "--run-id", gate_run, *card)
    before = rendered(workplace)["Deployment"]["metadata"]["annotations"]["loraline/sized-for"]
    assert step("deploy_vllm", "--run-id", gate_run, *card, "--calibrate", log).exit_code == 0
    learned = rendered(workplace)["Deployment"]["metadata"]["annotations"]["loraline/sized-for"]
    assert "activations 2.50" in before and "activations 4.69" in learned
    step("deploy_vllm", "--run-id", gate_run, *card)
    assert "activations 4.69" in (workplace / "outputs" / "vllm.yaml").read_text()


def test_a_log_of_the_adapters_server_does_not_size_the_one_for_tasks(
    step, workplace: Path, gate_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraline.serving import calibration

    sized = []
    plan = calibration.plan

    def recorded(demand, *arguments, **options):
        sized.append((demand.max_lora_rank > 0, options["log"]))
        return plan(demand, *arguments, **options)

    monkeypatch.setattr(calibration, "plan", recorded)
    log = workplace / "server.log"
    log.write_text("Model loading took 0.1 GiB\nAvailable KV cache memory: 15.00 GiB\n")
    (workplace / "tasks").mkdir()
    (workplace / "tasks" / "summary.yaml").write_text(SUMMARY)
    options = ("--tasks", "beside", "--tasks-dir", "tasks", "--task", "summary")
    command = ("deploy_vllm", "--run-id", gate_run, "--gpu", "L4", *options)
    assert step(*command, "--calibrate", log).exit_code == 0
    assert sized == [(True, log.read_text()), (False, "")]
    first = (workplace / "outputs" / "vllm.yaml").read_text()
    assert step(*command).exit_code == 0
    assert (workplace / "outputs" / "vllm.yaml").read_text() == first, "as the log is remembered"


def set_behind_the_gate(gate_run: str, settings: str) -> None:
    """Add settings to the adapter's configuration as if the gate had judged it with them."""
    from loraline import contract
    from loraline.serving import adapter_config

    client = mlflow.MlflowClient()
    train = runs.ancestor(client, client.get_run(gate_run), "train_qlora")
    logged = mlflow.get_logged_model(train.data.tags[tags.MODEL_ID])
    adapter = Path(logged.artifact_location.removeprefix("file://")) / runs.ADAPTER
    file = adapter / adapter_config.CONFIG
    file.write_text(file.read_text().replace('"r": 8', f'"r": 8, {settings}'))
    assert contract.read(adapter)
    digest = contract.folder_digest(adapter)
    for run_id in (train.info.run_id, gate_run):
        client.set_tag(run_id, tags.ADAPTER_DIGEST, digest)
    client.set_model_version_tag("mistral-7b-lora", "1", tags.ADAPTER_DIGEST, digest)


def test_an_adapter_that_vllm_would_not_apply_is_not_deployed(
    step, workplace: Path, gate_run: str
) -> None:
    set_behind_the_gate(gate_run, '"use_dora": true')
    result = step("deploy_vllm", "--run-id", gate_run)
    assert result.exit_code == 2
    message = "mistral-7b-lora version 1 cannot be served: use_dora: is True, which vLLM refuses"
    assert message in result.stderr
    assert not (workplace / "outputs" / "vllm.yaml").exists()


@pytest.mark.parametrize(
    ("release", "exit_code", "sentence"),
    [
        ("v0.32.0", 0, ""),
        ("v0.24.0", 2, "rank_pattern: is not read by vLLM 0.24; serve with 0.32 or later"),
    ],
)
def test_an_adapter_is_checked_against_the_release_of_the_server(
    step,
    gate_run: str,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    exit_code: int,
    sentence: str,
) -> None:
    # The version of the steps' image says nothing about vLLM's.
    monkeypatch.setenv("LORALINE_IMAGE", "registry/loraline:0.2.0")
    set_behind_the_gate(gate_run, '"rank_pattern": {"q_proj": 8}')
    server = f"vllm/vllm-openai:{release}"
    result = step("deploy_vllm", "--run-id", gate_run, "--server-image", server)
    assert (result.exit_code, sentence in result.stderr) == (exit_code, True), result.stderr


@pytest.fixture
def second_version(step, workplace: Path, candidate, gate_run: str) -> str:
    """Gate run of version 2, whose champion is version 1."""
    step("quality_gate", "--run-id", candidate(name="two", weight=2.0))
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("mistral-7b-lora", "champion", "1")
    return (workplace / "outputs" / "run-id").read_text()


def test_the_champion_is_served_beside_the_candidate(
    step, workplace: Path, second_version: str
) -> None:
    assert step("deploy_vllm", "--run-id", second_version, "--beside", "champion").exit_code == 0
    models = container(workplace)["readinessProbe"]["exec"]["command"][2:]
    assert models == ["mistral-7b-lora", "mistral-7b-lora-champion"]
    fetches = rendered(workplace)["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    wanted = [each["command"][each["command"].index("--model") + 1] for each in fetches]
    assert wanted == ["models:/mistral-7b-lora/2", "models:/mistral-7b-lora/1"]


def changed_in_the_store(client: mlflow.MlflowClient) -> None:
    version = client.get_model_version("mistral-7b-lora", "1")
    logged = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    adapter = Path(logged.artifact_location.removeprefix("file://")) / runs.ADAPTER
    (adapter / "README.md").write_text("written after the gate")


def without_a_gate_run(client: mlflow.MlflowClient) -> None:
    client.delete_model_version_tag("mistral-7b-lora", "1", tags.GATE_RUN)


def with_another_digest(client: mlflow.MlflowClient) -> None:
    client.set_model_version_tag("mistral-7b-lora", "1", tags.ADAPTER_DIGEST, "0" * 64)


def rejected_later(client: mlflow.MlflowClient) -> None:
    gate_run = client.get_model_version("mistral-7b-lora", "1").tags[tags.GATE_RUN]
    client.set_tag(gate_run, tags.RESULT, "failed")
    client.set_tag(gate_run, tags.REASON, "tuned_bleu 1 is not at least 99")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed_in_the_store, "what quality_gate judged is not what is here: the adapter has"),
        (without_a_gate_run, "version 1 of 'mistral-7b-lora' did not come through quality_gate"),
        (with_another_digest, "version 1 of 'mistral-7b-lora' has tags that no gate wrote"),
        (rejected_later, "version 1 of 'mistral-7b-lora' was rejected: tuned_bleu 1 is not at"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_version_beside_it_is_held_to_its_gate_as_well(
    step, workplace: Path, second_version: str, change, sentence: str
) -> None:
    beside = ("--run-id", second_version, "--beside", "champion")
    if change is not changed_in_the_store:
        assert step("deploy_vllm", *beside).exit_code == 0, "and a manifest is reused unchecked"
        (workplace / "outputs" / "vllm.yaml").unlink()
    change(mlflow.MlflowClient())
    result = step("deploy_vllm", *beside)
    assert (result.exit_code, f"--beside champion: {sentence}" in result.stderr) == (2, True), (
        result.output
    )
    assert not (workplace / "outputs" / "vllm.yaml").exists()


def test_the_gateway_knows_the_candidate_and_the_champion_beside_it(
    step, workplace: Path, second_version: str
) -> None:
    beside = ("--beside", "champion", "--gateway")
    assert step("deploy_vllm", "--run-id", second_version, *beside).exit_code == 0
    env = container(workplace)["env"]
    entries = json.loads(next(e["value"] for e in env if e["name"] == "GATEWAY_UPSTREAMS"))
    assert [(entry["uri"], entry["role"]) for entry in entries] == [
        ("models:/mistral-7b-lora/2", "candidate"),
        ("models:/mistral-7b-lora/1", "champion"),
    ]


def test_a_checkout_gets_one_commit_a_version(
    step, workplace: Path, gate_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "A Developer")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "developer@example.org")
    checkout = workplace / "cluster"
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / "apps").mkdir()
    (checkout / "other.txt").write_text("a change of someone else's")

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", "-C", checkout, *arguments], text=True)

    result = step("deploy_vllm", "--run-id", gate_run, "--git", checkout / "apps")
    assert result.exit_code == 0, result.stderr
    assert git("log", "--format=%s") == "Serve models:/mistral-7b-lora/1\n"
    assert git("show", "--name-only", "--format=").split() == ["apps/lora-mistral-7b-lora.yaml"]
    assert "?? other.txt" in git("status", "--porcelain")
    again = step("deploy_vllm", "--run-id", gate_run, "--git", checkout / "apps")
    assert "is committed already" in again.stdout
    assert len(git("log", "--format=%s").splitlines()) == 1


def test_without_a_cluster_apply_says_so(
    step, workplace: Path, gate_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(workplace / "none"))
    result = step("deploy_vllm", "--run-id", gate_run, "--apply")
    assert result.exit_code == 2
    assert "deploy-vllm: --apply finds no cluster" in result.stderr
    gone = workplace / "gone"
    server = {"server": "https://127.0.0.1:9"}
    gone.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": server}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
                "current-context": "c",
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(gone))
    result = step("deploy_vllm", "--run-id", gate_run, "--apply")
    assert (result.exit_code, "does not answer" in result.stderr) == (75, True)


def test_nothing_is_deployed_before_a_cluster_has_it(
    step, workplace: Path, gate_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(workplace / "none"))
    assert step("deploy_vllm", "--run-id", gate_run).exit_code == 0
    assert step("deploy_vllm", "--run-id", gate_run, "--apply").exit_code == 2
    client = mlflow.MlflowClient()
    train = runs.ancestor(client, client.get_run(gate_run), "train_qlora")
    assert "loraline.deployed" not in train.data.tags


def test_a_registered_version_is_rendered_to_be_served_here(
    step, script, workplace: Path, candidate, gate_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_local = script("steps/serve_local.py")
    step("quality_gate", "--run-id", candidate(name="two", weight=2.0))
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("mistral-7b-lora", "champion", "1")
    for alias, version in (("candidate", "2"), ("champion", "1")):
        manifest = serve_local.of_registered("mistral-7b-lora", alias)
        assert manifest == Path(f"outputs/serve/mistral-7b-lora-v{version}/vllm.yaml")
        message = f"models:/mistral-7b-lora/{version}, the {alias}, as {manifest} says"
        assert message in capsys.readouterr().out
        deployment = serve_local.local.read(manifest)["Deployment"]["metadata"]["annotations"]
        uri = deployment["loraline/registered-version"]
        assert uri == f"models:/mistral-7b-lora/{version}"
