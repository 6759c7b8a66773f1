import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loraline.contract import Contract
from loraline.delivery import kube, manifest
from loraline.delivery.placement import Placement
from loraline.errors import UserError
from loraline.serving import arguments, preflight
from loraline.serving.names import checked_name, served_name

TEXT = Contract(
    base="mistralai/Mistral-7B-v0.1",
    base_revision="27d67f1b5f57dc0953326b2601d68371d40ea8da",
    modality="text",
    architecture="MistralForCausalLM",
    prompt="Question: {question}",
    chat_template="{{ bos_token }}{% for m in messages %}\n[INST] {{ m.content }}{% endfor %}",
    min_pixels=None,
    max_pixels=None,
    max_length=700,
    max_new_tokens=100,
    dtype="bfloat16",
    r=4,
    lora_alpha=8,
    target_modules=("q_proj", "v_proj"),
    trains_vision=False,
    adapter_sha256="ab" * 32,
)
VISION = TEXT.model_copy(
    update={
        "base": "test_data/vision/base",
        "base_revision": "sha256:" + "cd" * 32,
        "modality": "vision",
        "architecture": "Qwen3VLForConditionalGeneration",
        "prompt": "Write the formula as LaTeX.",
        "min_pixels": 3136,
        "max_pixels": 50176,
        "max_length": 2900,
        "trains_vision": True,
    }
)
FP8 = {"quantization": "fp8"}
FILMS = {"modality": "vision", "max_videos": 1}


def rendered(contract=TEXT, **options):
    named = {"model_name": "latex-ocr", "version": 3, "image": "loraline:test"}
    options = named | {"digest": "ab" * 32} | options
    return {entry["kind"]: entry for entry in manifest.render(manifest.server(contract, **options))}


def pod(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def server_args(objects):
    return [arg.replace("$$", "$") for arg in pod(objects)["containers"][0]["args"]]


def test_the_manifest_names_the_registered_prompt():
    asked = TEXT.model_copy(update={"prompt_uri": "prompts:/support-prompt/3"})
    assert rendered(asked)["Deployment"]["metadata"]["annotations"]["loraline/prompt"] == (
        "prompts:/support-prompt/3"
    )
    assert "loraline/prompt" not in rendered()["Deployment"]["metadata"]["annotations"]


def test_text_adapter_is_served_with_what_its_contract_says():
    assert server_args(rendered()) == [
        "mistralai/Mistral-7B-v0.1",
        *("--served-model-name", "mistralai/Mistral-7B-v0.1"),
        *("--revision", "27d67f1b5f57dc0953326b2601d68371d40ea8da"),
        *("--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-modules"),
        '{"name":"latex-ocr","path":"/adapters/latex-ocr/v3",'
        '"base_model_name":"mistralai/Mistral-7B-v0.1"}',
        *("--tokenizer-mode", "hf", "--config-format", "hf", "--load-format", "safetensors"),
        *("--dtype", "bfloat16", "--max-model-len", "1024", "--gpu-memory-utilization", "0.9"),
        *("--max-num-seqs", "64", "--max-num-batched-tokens", "2048"),
        *("--chat-template", "/etc/loraline/chat_template.jinja"),
        *("--chat-template-content-format", "string", "--generation-config", "vllm"),
        *("--shutdown-timeout", "30", "--disable-fastapi-docs"),
        *("--disable-access-log-for-endpoints", "/health,/metrics,/ping"),
    ]


def test_vision_adapter_is_served_with_the_pixel_limits_and_the_tower_it_was_trained_with():
    assert server_args(rendered(VISION)) == [
        "test_data/vision/base",
        *("--served-model-name", "base"),
        *("--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-modules"),
        '{"name":"latex-ocr","path":"/adapters/latex-ocr/v3","base_model_name":"base"}',
        "--enable-tower-connector-lora",
        *("--tokenizer-mode", "hf", "--config-format", "hf", "--load-format", "safetensors"),
        *("--dtype", "bfloat16", "--max-model-len", "3072", "--gpu-memory-utilization", "0.9"),
        *("--max-num-seqs", "64", "--max-num-batched-tokens", "3072"),
        *("--chat-template", "/etc/loraline/chat_template.jinja"),
        *("--chat-template-content-format", "openai", "--generation-config", "vllm"),
        *("--limit-mm-per-prompt", '{"image":1,"video":0}', "--mm-processor-kwargs"),
        '{"images_kwargs":{"size":{"shortest_edge":3136,"longest_edge":50176}}}',
        *("--allowed-media-domains", "data-uri-only.invalid"),
        *("--shutdown-timeout", "30", "--disable-fastapi-docs"),
        *("--disable-access-log-for-endpoints", "/health,/metrics,/ping"),
    ]


def test_init_container_fetches_the_version_whose_digest_was_measured():
    fetch = pod(rendered())["initContainers"][0]
    assert fetch["image"] == "loraline:test"
    assert fetch["command"] == [
        *("python", "steps/fetch_adapter.py", "--model", "models:/latex-ocr/3"),
        *("--sha256", "ab" * 32, "--max-lora-rank", "8", "--out-dir", "/adapters/latex-ocr/v3"),
    ]


def test_annotations_name_version_adapter_and_base():
    objects = rendered()
    expected = {
        "loraline/registered-version": "models:/latex-ocr/3",
        "loraline/adapter-sha256": "ab" * 32,
        "loraline/base-revision": "27d67f1b5f57dc0953326b2601d68371d40ea8da",
    }
    assert all(entry["metadata"]["annotations"] == expected for entry in objects.values())
    template = objects["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"] == expected


def test_config_map_holds_template_contract_and_prompt():
    data = rendered(VISION)["ConfigMap"]["data"]
    assert data["chat_template.jinja"] == VISION.chat_template
    assert data["prompt.txt"] == VISION.prompt
    assert Contract.model_validate_json(data["contract.json"]) == VISION


def test_service_and_selector_find_the_pod_and_volumes_exist():
    objects = rendered(placement=Placement(namespace="models"))
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {entry["metadata"]["namespace"] for entry in objects.values()} == {"models"}
    volumes = {volume["name"] for volume in pod(objects)["volumes"]}
    for container in [*pod(objects)["initContainers"], *pod(objects)["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    config = next(v["configMap"]["name"] for v in pod(objects)["volumes"] if "configMap" in v)
    assert config == objects["ConfigMap"]["metadata"]["name"]


def test_grace_period_covers_draining_and_running_requests():
    spec = pod(rendered())
    args = server_args(rendered())
    drain = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    shutdown = int(args[args.index("--shutdown-timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] > drain + shutdown


@pytest.mark.parametrize(
    ("rank", "accepted"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (257, 320), (512, 512)]
)
def test_rank_is_rounded_up_to_one_that_vllm_accepts(rank, accepted):
    assert preflight.max_lora_rank(rank) == accepted


def test_rank_above_the_highest_is_refused():
    with pytest.raises(UserError, match="rank 513 cannot be served: vLLM accepts up to 512"):
        rendered(TEXT.model_copy(update={"r": 513}))


@pytest.mark.parametrize(
    ("row", "answer", "length"), [(10, 10, 512), (500, 12, 512), (500, 13, 768), (4000, 96, 4096)]
)
def test_context_holds_the_longest_row_and_an_answer(row, answer, length):
    contract = TEXT.model_copy(update={"max_length": row, "max_new_tokens": answer})
    assert contract.max_model_len == length


def test_vision_adapter_without_pixel_limits_is_refused():
    with pytest.raises(UserError, match="both pixel limits"):
        rendered(VISION.model_copy(update={"max_pixels": None}))


def test_adapter_named_like_its_base_is_refused():
    with pytest.raises(UserError, match="'base' is also its base's name"):
        rendered(VISION, name="base")


@pytest.mark.parametrize("name", ["Upper", "a_b", "-a", "a-", "", "a" * 51, "a\n", "vllm.x"])
def test_name_that_kubernetes_would_refuse_is_refused(name):
    with pytest.raises(UserError, match="lower-case letters, digits and hyphens"):
        rendered(name=name)


@pytest.mark.parametrize("model_name", ["", " ", "a/b", "a:b", "a\nb", "a\0b"])
def test_model_name_that_mlflow_would_refuse_is_refused(model_name):
    with pytest.raises(UserError, match="registered model name"):
        rendered(model_name=model_name)


@pytest.mark.parametrize("version", ["0", "-1", "latest", "1.5", "", "3\n"])
def test_version_is_a_positive_integer(version):
    with pytest.raises(UserError, match="is not a positive integer"):
        rendered(version=version)


def test_names_that_look_alike_stay_apart():
    names = ["qwen3-vl", "qwen3_vl", "Qwen3-VL", "qwen3 vl", "_", "-", "a" * 60, "a" * 61]
    assert len({served_name(name) for name in names}) == len(names)


def test_service_is_never_named_vllm():
    assert rendered(model_name="vllm")["Service"]["metadata"]["name"] == "lora-vllm"


def test_variables_in_names_are_not_replaced_by_kubernetes():
    command = pod(rendered(model_name="$(VLLM_API_KEY)"))["initContainers"][0]["command"]
    assert "models:/$$(VLLM_API_KEY)/3" in command


def test_server_image_user_and_fetch_environment_reach_the_pod():
    objects = rendered(fetch_env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    spec = pod(objects)
    assert spec["containers"][0]["image"] == "vllm/vllm-openai:v0.32.0"
    assert spec["securityContext"]["runAsUser"] == 2000
    env = {entry["name"]: entry.get("value") for entry in spec["initContainers"][0]["env"]}
    assert env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    own = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
    reference = own["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "lora-latex-ocr", "key": "api-key"}, "no key, no server"
    assert own["VLLM_NO_USAGE_STATS"]["value"] == "1"


def test_same_input_gives_the_same_bytes():
    def render():
        return kube.to_yaml(list(rendered(VISION, fetch_env={"B": "2", "A": "1"}).values()))

    assert render() == render()


anything = st.text(st.characters(exclude_categories=["Cs"]))
model_names = anything.filter(
    lambda name: name.strip() and name.isprintable() and not set(name) & set("/:")
)


names_and_values = st.one_of(
    anything,
    st.sampled_from(["a: b", "- x", "'", '"', "y", "1e3", "#", "{{x}}", "$(A)", "a" * 300]),
)


@settings(max_examples=60)
@given(
    model_name=model_names,
    prompt=names_and_values,
    chat_template=names_and_values,
    base=names_and_values.map(lambda base: "_" + base.replace("/", "_")),
    address=names_and_values,
    form=st.sampled_from(["deployment", "kserve", "production-stack"]),
)
def test_hostile_texts_come_back_as_they_were(
    model_name, prompt, chat_template, base, address, form
):
    contract = VISION.model_copy(
        update={"prompt": prompt, "chat_template": chat_template, "base": f"/bases/{base}"}
    )
    options = {"fetch_env": {"MLFLOW_S3_ENDPOINT_URL": address.replace("://", "")}}
    pod = manifest.server(
        contract,
        model_name=model_name,
        version=3,
        digest="ab" * 32,
        image=address,
        placement=Placement(format=form),
        **options,
    )
    objects = manifest.render(pod)
    text = kube.to_yaml(objects)
    assert list(yaml.load_all(text.encode(), yaml.CSafeLoader)) == objects
    if form != "deployment":
        return
    result = {entry["kind"]: entry for entry in objects}
    assert result["ConfigMap"]["data"]["prompt.txt"] == prompt
    assert server_args(result)[0] == f"/bases/{base}"
    name = result["Service"]["metadata"]["name"]
    assert len(name) <= 63
    assert checked_name(name.removeprefix("lora-"))
    module = json.loads(server_args(result)[server_args(result).index("--lora-modules") + 1])
    assert module["path"] == f"/adapters/{module['name']}/v3"


LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
accepted = {
    "namespace": lambda text: len(text) <= 63 and re.fullmatch(LABEL, text),
    "base_volume": lambda text: len(text) <= 253 and re.fullmatch(rf"{LABEL}(\.{LABEL})*", text),
}


@pytest.mark.parametrize("name", ["a" * 63, "models", "0"])
def test_a_namespace_is_as_long_as_kubernetes_takes_it(name):
    assert rendered(placement=Placement(namespace=name))
    with pytest.raises(UserError, match="up to 63 lower-case letters, digits and hyphens"):
        rendered(placement=Placement(namespace=f"{name}{'a' * 63}"))


def test_a_claim_may_have_dots_in_its_name():
    assert rendered(placement=Placement(base_volume="bases.models-1"))
    for name in ("bases..models", ".bases", "bases.", "a." * 127):
        with pytest.raises(UserError, match="each part"):
            rendered(placement=Placement(base_volume=name))


@settings(max_examples=60)
@given(
    value=names_and_values,
    key=st.sampled_from(["namespace", "base_volume", "prometheus", "server_image"]),
)
def test_a_hostile_place_is_refused_or_quoted(value, key):
    try:
        pod = manifest.server(
            TEXT,
            model_name="latex-ocr",
            version=3,
            digest="ab" * 32,
            image="loraline:test",
            placement=Placement(**{key: value}, replicas=2),
        )
        objects = manifest.render(pod)
    except UserError as error:
        assert "\n" not in str(error)
        assert key not in accepted or not accepted[key](value)
        return
    assert list(yaml.load_all(kube.to_yaml(objects).encode(), yaml.CSafeLoader)) == objects
    if key in accepted:
        assert accepted[key](value)


@pytest.mark.parametrize(
    ("changes", "placement", "base_config", "message"),
    [
        ({}, Placement(replicas=0), {}, "0 replicas serve nothing"),
        ({}, Placement(prometheus="prometheus"), {}, "is not an http"),
        ({}, Placement(server_image="vllm/vllm-openai:v0.17.1"), {}, "before 0.18"),
        ({}, Placement(server_image="vllm/vllm-openai"), {}, "names no version"),
        ({}, Placement(server_image="vllm/vllm-openai:latest"), {}, "one like vllm/vllm-openai:v0"),
        ({}, Placement(), {"quant_method": "bitsandbytes"}, "cannot read; build an image"),
        ({"dtype": "float32"}, Placement(cpu=True), {"quant_method": "gptq"}, "not served in"),
        ({"dtype": "float32"}, Placement(), {}, "adapters on GPUs in bfloat16 or float16 only"),
        (FP8, Placement(merged=True), {}, "merged weights would be rounded anew"),
        (FP8, Placement(server_image="vllm/vllm-openai:v0.31.0"), {}, "not known to serve"),
        (FILMS, Placement(server_image="vllm/vllm-openai:v0.31.0"), {}, "not known to take"),
    ],
)
def test_what_would_not_start_is_refused(changes, placement, base_config, message):
    with pytest.raises(UserError, match=message):
        rendered(
            TEXT.model_copy(update=changes),
            placement=placement,
            base_config={"quantization_config": base_config},
        )


def test_a_base_in_fp8_is_rounded_by_the_server_as_in_training():
    args = server_args(rendered(TEXT.model_copy(update=FP8)))
    assert args[args.index("--quantization") + 1] == "fp8_per_channel"
    assert "--quantization-config" not in args
    assert "--quantization" not in server_args(rendered(TEXT))
    args = server_args(rendered(VISION.model_copy(update=FP8)))
    ignored = json.loads(args[args.index("--quantization-config") + 1])["ignore"]
    pattern = re.compile(ignored[0].removeprefix("re:"))
    assert pattern.match("visual.blocks.0.attn.qkv")
    assert pattern.match("model.visual.merger.mlp.0")
    assert not pattern.match("language_model.model.layers.0.self_attn.qkv_proj")
    with pytest.raises(UserError, match="quantization 'none' and the one beside it has 'fp8'"):
        arguments.shared_contract(TEXT, TEXT.model_copy(update=FP8))


def test_a_bitsandbytes_base_is_served_by_an_image_of_ones_own():
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    own = Placement(server_image="registry.local:5000/vllm-bnb:v0.32.0")
    assert rendered(base_config=config, placement=own)["Deployment"]
    old = Placement(server_image="vllm/vllm-openai:v0.27.1")
    assert rendered(base_config=config, placement=old)["Deployment"]


def test_an_image_pinned_by_digest_needs_no_version_in_its_tag():
    image = f"vllm/vllm-openai@sha256:{'0' * 64}"
    assert rendered(placement=Placement(server_image=image))["Deployment"]


def test_what_does_not_go_together_is_refused():
    other = arguments.Adapter("other", "models:/other/1", "/adapters/other/v1", "cd" * 32, 8)
    with pytest.raises(UserError, match="merged model is served alone"):
        rendered(beside=[other], placement=Placement(merged=True))
    with pytest.raises(UserError, match="one init container"):
        rendered(beside=[other], placement=Placement(format="production-stack"))
    with pytest.raises(UserError, match="dtype 'bfloat16' and the one beside it has 'float32'"):
        arguments.shared_contract(TEXT, TEXT.model_copy(update={"dtype": "float32"}))
    with pytest.raises(UserError, match="export 'adapter' and the one beside it has 'merged'"):
        arguments.shared_contract(TEXT, TEXT.model_copy(update={"export": "merged"}))


@pytest.mark.parametrize(
    "larger",
    [
        {"max_length": 9000},
        {"max_new_tokens": 9000},
        {"max_images": 3},
        {"max_videos": 2},
        {"tools": True},
    ],
    ids=lambda larger: next(iter(larger)),
)
def test_two_versions_on_a_server_have_the_larger_limits(larger: dict[str, int | bool]):
    smaller, other = VISION, VISION.model_copy(update=larger)
    assert arguments.shared_contract(smaller, other) == other
    assert arguments.shared_contract(other, smaller) == other


def test_a_server_takes_as_many_images_a_request_as_the_rows_have():
    several = VISION.model_copy(update={"max_images": 3})
    args = server_args(rendered(several))
    assert args[args.index("--limit-mm-per-prompt") + 1] == '{"image":3,"video":0}'
    assert "--media-io-kwargs" not in args
    assert "--trust-request-mm-kwargs" not in args


def test_a_server_takes_as_many_videos_a_request_as_the_rows_have_with_all_their_frames():
    moving = VISION.model_copy(update={"max_videos": 2})
    args = server_args(rendered(moving))
    assert args[args.index("--limit-mm-per-prompt") + 1] == '{"image":1,"video":2}'
    assert args[args.index("--media-io-kwargs") + 1] == '{"video":{"num_frames":-1}}'
    # A request says how many of its frames make a second, which vLLM refuses otherwise.
    assert "--trust-request-mm-kwargs" in args


def test_keda_asks_for_the_requests_of_this_namespace_alone():
    place = Placement(prometheus="http://prometheus:9090", namespace="models", replicas=2)
    scaled = rendered(placement=place)["ScaledObject"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert query.startswith('sum(vllm:num_requests_waiting{namespace="models",service="lora-')
