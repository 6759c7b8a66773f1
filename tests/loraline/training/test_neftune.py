"""Noise on embeddings: each row gets its own measure of it, in training alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import ARCHITECTURES, VISION, encoder_for, rows_for
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.integrations.neftune import activate_neftune

from loraline.base.encoding import Row
from loraline.training import attention, loss, neftune, packing

ALPHA = 5.0


def prepared(base: Path, vision: bool) -> Any:
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32)
    attention.use(model)
    loss.return_losses(model)
    return model.train()


def embeddings_of(model: Any, batch: packing.MicroBatch) -> torch.Tensor:
    """What reaches the language model's layers, (tokens, width)."""
    result = []
    language = getattr(model.model, "language_model", model.model)
    hook = language.layers[0].register_forward_pre_hook(lambda _, inputs: result.append(inputs[0]))
    torch.manual_seed(3)
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return result[0][0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_of_a_pack_gets_noise_by_its_own_length(
    architecture: str, tiny_base: Callable[[str], Path]
) -> None:
    vision = architecture in VISION
    base = tiny_base(architecture)
    encoder = encoder_for(base, vision)
    model = prepared(base, vision)
    rows = rows_for(encoder, vision)
    batch = packing.pack(encoder, rows, model.model.get_rope_index if vision else None)
    plain = embeddings_of(model, batch)
    neftune.add_noise(model, ALPHA)
    noise = embeddings_of(model, batch) - plain
    image = batch["input_ids"][0] == (encoder.processor.image_token_id if vision else -1)
    assert bool(image.any()) == vision and not noise[image].any()
    for row, own, shows in zip(
        rows,
        noise.split([len(row) for row in rows]),
        image.split([len(row) for row in rows]),
        strict=True,
    ):
        bound = ALPHA / (len(row) * noise.shape[1]) ** 0.5
        drawn = own[~shows] / bound
        assert 0.98 < drawn.abs().max() <= 1 + 1e-5
        # Of a uniform distribution over (-1, 1).
        assert drawn.std() == pytest.approx(3**-0.5, rel=0.1)


def test_a_row_alone_gets_the_noise_that_transformers_would_give_it(
    tiny_base: Callable[[str], Path],
) -> None:
    base = tiny_base("mistral")
    encoder = encoder_for(base, False)
    batch = packing.pack(encoder, rows_for(encoder, False)[:1], None)
    own, theirs = prepared(base, False), prepared(base, False)
    neftune.add_noise(own, ALPHA)
    activate_neftune(theirs, ALPHA)
    torch.testing.assert_close(embeddings_of(own, batch), embeddings_of(theirs, batch))


def test_there_is_no_noise_in_evaluation(tiny_base: Callable[[str], Path]) -> None:
    base = tiny_base("mistral")
    encoder = encoder_for(base, False)
    batch = packing.pack(encoder, [Row([5, 6, 7], [8, encoder.end])] * 2, None)
    model = prepared(base, False)
    with torch.no_grad():
        expected = model(**batch)
        neftune.add_noise(model, ALPHA)
        assert not model.train()(**batch).allclose(expected)
        assert model.eval()(**batch).equal(expected)
