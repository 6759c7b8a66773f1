"""A server of tasks takes what each may bring, and says how it differs from what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import tasks as gateway_tasks
from loraline.contract import Contract
from loraline.delivery import manifest, tasks
from loraline.delivery.placement import Placement
from loraline.delivery.tasks import Need
from loraline.errors import UserError

VISION = Contract(
    base="Qwen/Qwen3-VL-8B-Instruct",
    base_revision="27d67f1b5f57dc0953326b2601d68371d40ea8da",
    modality="vision",
    architecture="Qwen3VLForConditionalGeneration",
    prompt="Write the formula as LaTeX.",
    chat_template="{{ messages }}",
    min_pixels=3136,
    max_pixels=50176,
    max_length=700,
    max_new_tokens=100,
    dtype="bfloat16",
    r=8,
    lora_alpha=8,
    target_modules=("q_proj",),
    trains_vision=False,
    adapter_sha256="ab" * 32,
)
TEXT = VISION.model_copy(
    update={"modality": "text", "min_pixels": None, "max_pixels": None, "base": "mistral"}
)
PAGE = Need("page", images=2, frames=0, min_pixels=1024, max_pixels=1024_00, answer_tokens=512)
CLIP = Need("clip", images=0, frames=8, min_pixels=4096, max_pixels=2048, answer_tokens=64)


def flag(args: list[str], name: str) -> str:
    return args[args.index(name) + 1]


def arguments(objects: list[dict[str, Any]]) -> list[str]:
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    args: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def test_the_context_holds_the_longest_request_of_any_task() -> None:
    # Cells of 32 x 32 pixels: two images of 100, or four pairs of frames of 2 and their times.
    assert PAGE.tokens(32) == 2 * 100 + 1536 + 512
    assert CLIP.tokens(32) == 4 * (2 + 16) + 1536 + 64
    wide = tasks.widened(VISION, [PAGE, CLIP])
    assert wide.max_model_len >= PAGE.tokens(32)
    assert (wide.min_pixels, wide.max_pixels, wide.max_new_tokens) == (1024, 102400, 512)


def test_the_trainings_own_prompt_still_fits() -> None:
    small = Need("small", 1, 0, 50176, 3136, 8)
    wide = tasks.widened(VISION.model_copy(update={"max_length": 9000}), [small])
    assert (wide.min_pixels, wide.max_pixels) == (3136, 50176)
    assert wide.max_length == 9000


def test_how_the_limits_differ_is_told() -> None:
    wide = tasks.widened(VISION, [PAGE, CLIP])
    assert tasks.differences(VISION, wide, tasks.videos([PAGE, CLIP])) == (
        "images a request 1 to 2, videos a request 0 to 1, min_pixels 3136 to 1024, "
        "max_pixels 50176 to 102400, tokens 1024 to 2304"
    )
    assert tasks.differences(VISION, VISION, 0) == ""


def test_a_text_base_is_refused_tasks_that_it_cannot_see() -> None:
    with pytest.raises(UserError, match="task 'page' shows images or videos, and mistral is"):
        tasks.widened(TEXT, [PAGE])
    written = Need("summary", 0, 0, 1, 1, 300)
    assert tasks.widened(TEXT, [written]).max_pixels is None
    with pytest.raises(UserError, match="needs a task"):
        tasks.widened(TEXT, [])


def test_the_server_beside_has_the_base_alone() -> None:
    needs = gateway_tasks.needs()
    first = manifest.server(
        VISION, model_name="latex-ocr", version=3, image="loraline:test", digest="cd" * 32
    )
    second = manifest.tasks_server(tasks.widened(VISION, needs), first, videos=tasks.videos(needs))
    objects = manifest.render(second)
    args = arguments(objects)
    assert flag(args, "--limit-mm-per-prompt") == '{"image":1,"video":1}'
    assert flag(args, "--media-io-kwargs") == '{"video":{"num_frames":-1}}'
    assert "10035200" in flag(args, "--mm-processor-kwargs")
    assert "--enable-lora" not in args
    assert {each["metadata"]["name"] for each in objects} == {"lora-latex-ocr-tasks"}
    pod = next(each for each in objects if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["initContainers"] == []
    assert pod["containers"][0]["readinessProbe"]["exec"]["command"][2:] == [VISION.base]
    keys = [each for each in pod["containers"][0]["env"] if each["name"] == "VLLM_API_KEY"]
    named = keys[0]["valueFrom"]["secretKeyRef"]
    assert named == {"name": "lora-latex-ocr", "key": "api-key"}, "one key for a model's servers"


def test_models_with_long_names_have_tasks_servers_of_their_own() -> None:
    names = set()
    for model in ("a" * 49 + "b", "a" * 49 + "c", "a" * 60, "a" * 61):
        first = manifest.server(
            VISION, model_name=model, version=3, image="loraline:test", digest="cd" * 32
        )
        names.add(manifest.tasks_server(VISION, first, videos=0).resource)
    assert len(names) == 4
    assert max(map(len, names)) <= 63


def test_the_adapters_server_says_that_it_was_measured_otherwise() -> None:
    wide = tasks.widened(VISION, [PAGE])
    pod = manifest.server(
        wide,
        model_name="latex-ocr",
        version=3,
        image="loraline:test",
        digest="cd" * 32,
        placement=Placement(),
        videos=tasks.videos([PAGE]),
        measured_otherwise=tasks.differences(VISION, wide, 0),
    )
    objects = manifest.render(pod)
    args = arguments(objects)
    assert flag(args, "--limit-mm-per-prompt") == '{"image":2,"video":0}'
    assert "--enable-lora" in args
    differences = objects[0]["metadata"]["annotations"]["loraline/measured-otherwise"]
    assert differences.startswith("images a request 1 to 2, min_pixels 3136 to 1024")


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="task 'ocr' is not known; accepted: computer, document-"):
        gateway_tasks.needs(["ocr"])
