import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loraline.answering import hf
from loraline.base import targets
from loraline.base.encoding import Encoder
from loraline.base.load import attach, load
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.evaluation import metrics
from loraline.records import from_prompt
from loraline.training import attention, loss, packing

DATA = Path(__file__).parents[3] / "test_data"
MODALITIES = ("text", "vision")


@pytest.fixture(scope="module", params=MODALITIES)
def tiny(request: pytest.FixtureRequest):
    """A trained tiny base with 40 encoded rows of the test data."""
    modality = request.param
    folder = DATA / modality
    prompt = (folder / "prompt.txt").read_text()
    if modality == "text":
        lines = (folder / "test.jsonl").read_text().splitlines()[:40]
        asked = [json.loads(line) for line in lines]
        result = [from_prompt(prompt, row["question"], row["answer"]) for row in asked]
        encoder = Encoder(folder / "base", "text")
    else:
        lines = (folder / "metadata.jsonl").read_text().splitlines()[:40]
        asked = [json.loads(line) for line in lines]
        result = [
            from_prompt(prompt, "", row["text"], (folder / row["file_name"]).read_bytes())
            for row in asked
        ]
        encoder = Encoder(folder / "base", "vision", min_pixels=4704, max_pixels=4704)
    base = locate(str(folder / "base"), None)
    model = load(base, modality, quantization="none", dtype="float32").eval()
    return model, encoder, [encoder.encode(record) for record in result]


def ignore(units: int, remark: str) -> None:
    pass


def likelihoods(tiny, batch_size: int) -> list[float]:
    model, encoder, rows = tiny
    return hf.negative_log_likelihoods(model, encoder, rows, ignore, batch_size)


def perplexity(tiny, nll: list[float]) -> float:
    return metrics.perplexity(nll, [len(row.answer) for row in tiny[2]]).value


def test_a_base_is_measured_as_its_contract_says_that_it_is_rounded(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encoder, rows = tiny
    base = locate(whole.config.name_or_path, None)
    modality = "vision" if encoder.processor else "text"
    monkeypatch.setattr(hf, "answers", lambda *_: [])
    measured = {}
    for quantization in ("none", "fp8"):
        agreed = SimpleNamespace(
            modality=modality, dtype="float32", quantization=quantization, max_new_tokens=4
        )
        asked = hf.measure(agreed, base, {"base": None}, encoder, rows)  # type: ignore[arg-type]
        measured[quantization] = asked["base"][1]
    assert measured["none"] == pytest.approx(likelihoods(tiny, hf.BATCH), abs=1e-4)
    assert measured["fp8"] == pytest.approx(measured["none"], rel=0.2, abs=0.2)
    assert measured["fp8"] != pytest.approx(measured["none"], abs=1e-3)


def test_perplexity_is_the_same_for_any_batch(tiny) -> None:
    one = perplexity(tiny, likelihoods(tiny, 1))
    assert one > 1
    for batch_size in (7, 32):
        assert perplexity(tiny, likelihoods(tiny, batch_size)) == pytest.approx(one, rel=1e-5)


def test_no_more_logits_are_made_at_once_than_fit_a_card(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, rows = tiny
    whole = likelihoods(tiny, 32)
    passes: list[int] = []
    forward = model.forward

    def counted(*arguments, **inputs):
        output = forward(*arguments, **inputs)
        passes.append(output.logits.numel())
        return output

    monkeypatch.setattr(model, "forward", counted)
    longest = max(len(row.answer) for row in rows) + 1
    monkeypatch.setattr(hf, "LOGITS", 3 * longest * model.config.get_text_config().vocab_size)
    assert likelihoods(tiny, 32) == pytest.approx(whole, rel=1e-5)
    assert len(passes) == -(-len(rows) // 3) and max(passes) <= hf.LOGITS


def test_no_batch_has_more_tokens_than_fit_a_card(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder, rows = tiny
    whole = likelihoods(tiny, 32), hf.answers(model, encoder, rows, 8, ignore)
    sizes: list[tuple[int, int]] = []
    collate = encoder.collate

    def counted(batch, **options):
        collated = collate(batch, **options)
        sizes.append(tuple(collated["input_ids"].shape))
        return collated

    monkeypatch.setattr(encoder, "collate", counted)
    monkeypatch.setattr(hf, "TOKENS", 3 * max(len(row) for row in rows))
    assert likelihoods(tiny, 32) == pytest.approx(whole[0], rel=1e-5)
    assert sizes[0][0] == 3 and all(count * length <= hf.TOKENS for count, length in sizes)

    sizes.clear()
    monkeypatch.setattr(hf, "TOKENS", 3 * (8 + max(len(row.prompt) for row in rows)))
    assert hf.answers(model, encoder, rows, 8, ignore) == whole[1]
    assert sizes[0][0] == 3 and all(count * (length + 8) <= hf.TOKENS for count, length in sizes)


def test_a_row_that_fits_no_batch_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "TOKENS", 100)
    asked: list[list[int]] = []
    hf.in_batches([20, 500, 40, 50], 3, asked.append)
    assert asked == [[1], [3, 2], [0]]


def test_a_batch_that_a_gpu_has_no_memory_for_is_halved(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder, rows = tiny
    whole = likelihoods(tiny, 32), hf.answers(model, encoder, rows, 8, ignore)
    sizes: list[int] = []
    advanced: list[int] = []

    def scarce(work, room: int, new_tokens: int = 0):
        def limited(*arguments, **inputs):
            count, length = inputs["input_ids"].shape
            sizes.append(count)
            if count * (length + new_tokens) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(*arguments, **inputs)

        return limited

    def empty_cache() -> None:
        # While the error is there, so is what its frames had allocated.
        assert sys.exc_info()[0] is None
        emptied.append(True)

    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    longest = max(len(row) for row in rows)
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", scarce(model.forward, 9 * longest))
        assert likelihoods(tiny, 32) == pytest.approx(whole[0], rel=1e-5)
    # Each row once, and nothing too large after the first batch.
    assert sizes[:3] == [32, 16, 8] and sum(sizes[2:]) == len(rows)

    sizes.clear()
    longest = max(len(row.prompt) for row in rows)
    monkeypatch.setattr(model, "generate", scarce(model.generate, 9 * (longest + 8), 8))
    answers = hf.answers(model, encoder, rows, 8, lambda units, _: advanced.append(units))
    assert answers == whole[1]
    assert sizes[:3] == [32, 16, 8] and sum(sizes[2:]) == len(rows) == sum(advanced)
    assert len(emptied) == 4


def test_a_row_that_a_gpu_has_no_memory_for_is_one_sentence() -> None:
    def work(indices: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.55 GiB.")

    with pytest.raises(
        UserError, match="no memory for 50 tokens, prompt and answer together, beside the base: use"
    ):
        hf.in_batches([20, 50], 32, work)


def test_likelihoods_are_the_models_own_loss(tiny) -> None:
    model, encoder, rows = tiny
    result = likelihoods(tiny, 32)
    for row, nll in list(zip(rows, result, strict=True))[:8]:
        batch = encoder.collate([row], answers=True, side="right")
        with torch.inference_mode():
            loss = float(model(**batch).loss)
        assert nll == pytest.approx(loss * len(row.answer), rel=1e-4)


def test_perplexity_is_the_same_for_packed_and_padded_rows(tiny) -> None:
    shared, encoder, rows = tiny
    model = copy.deepcopy(shared)
    attention.use(model)
    loss.return_losses(model)
    rope_index = getattr(model.model, "get_rope_index", None)
    with torch.inference_mode():
        losses = model(**packing.pack(encoder, rows, rope_index))
    packed = [float(part.sum()) for part in losses.split([len(row.answer) for row in rows])]
    padded = perplexity(tiny, likelihoods(tiny, 32))
    assert perplexity(tiny, packed) == pytest.approx(padded, rel=1e-5)


def test_answers_are_the_same_for_any_batch(tiny) -> None:
    model, encoder, rows = tiny
    one, many = (
        hf.answers(model, encoder, rows[:12], 16, ignore, batch_size) for batch_size in (1, 12)
    )
    assert one == many
    assert any(answer.text for answer in many)


def test_a_cut_answer_is_known_as_cut(tiny) -> None:
    model, encoder, rows = tiny
    (cut,) = hf.answers(model, encoder, rows[:1], 1, ignore)
    assert cut.truncated and len(cut.tokens) == 1


def test_the_bare_base_is_measured_after_an_adapter_as_before(tiny, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, encoder, rows = tiny
    before = likelihoods(tiny, 32)
    pattern = targets.target_modules(
        "text" if encoder.processor is None else "vision", ["q_proj"], False
    )
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=pattern, init_lora_weights=False))
    peft.save_pretrained(tmp_path)
    attached = attach(peft.unload(), tmp_path)
    during = hf.negative_log_likelihoods(attached, encoder, rows, ignore)
    attached.unload()
    assert likelihoods(tiny, 32) == before
    assert max(abs(one - other) for one, other in zip(during, before, strict=True)) > 0.5
