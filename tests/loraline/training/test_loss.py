"""Losses in slices are those of the whole, in every precision and wherever the slices end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from loraline.training import loss

VOCABULARY, WIDTH, TARGETS = 50, 16, 30


@pytest.mark.parametrize("logits", [1, VOCABULARY * 7, VOCABULARY * TARGETS, 2**26])
def test_slices_of_any_size_give_the_losses_of_the_whole(
    logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "SLICE", logits)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TARGETS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    labels = torch.randint(VOCABULARY, (TARGETS,), generator=generator)
    scale = torch.rand(TARGETS, generator=generator)
    expected = cross_entropy(hidden @ weight.T, labels, reduction="none")
    (gradient,) = torch.autograd.grad((expected * scale).sum(), hidden)

    result = loss.SlicedCrossEntropy.apply(hidden, weight, labels)

    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.autograd.grad((result * scale).sum(), hidden)[0], gradient)


def test_sixteen_bit_logits_are_normalised_in_thirty_two() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TARGETS, WIDTH, generator=generator).bfloat16()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).bfloat16()
    labels = torch.randint(VOCABULARY, (TARGETS,), generator=generator)

    result = loss.SlicedCrossEntropy.apply(hidden, weight, labels)

    assert result.dtype == torch.float32
    expected = cross_entropy((hidden @ weight.T).float(), labels, reduction="none")
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


class Causal(torch.nn.Module):
    """A causal model whose hidden states are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)

    def model(self, hidden: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(last_hidden_state=hidden[None])


@pytest.mark.parametrize("head_learns", [True, False])
def test_a_head_that_learns_gets_its_gradient(head_learns: bool) -> None:
    model = Causal()
    model.lm_head.weight.requires_grad_(head_learns)
    loss.return_losses(model)  # type: ignore[arg-type]
    hidden = torch.randn(5, WIDTH, requires_grad=True)
    labels, predicting = torch.tensor([3, 4]), torch.tensor([0, 3])

    result = model(hidden=hidden, labels=labels, predicting=predicting)
    result.sum().backward()

    expected = cross_entropy(hidden[predicting] @ model.lm_head.weight.T, labels, reduction="none")
    torch.testing.assert_close(result, expected)
    assert (model.lm_head.weight.grad is not None) is head_learns
    assert hidden.grad is not None and not hidden.grad[1].any() and hidden.grad[3].any()
