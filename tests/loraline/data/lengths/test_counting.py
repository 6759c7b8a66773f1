"""Tokens counted by words are those that the tokenizer makes of whole texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts

from loraline.data.lengths.counting import MARK, PATTERNS, counter

PAGES = sorted((Path(__file__).parents[4] / "docs").glob("*.md"))
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
QWEN, LLAMA = sorted(PATTERNS, key=len)


@functools.cache
def trained(kind: str) -> Tokenizer:
    """A small tokenizer of our pages, in the manner of GPT-2, Qwen, Llama 3 or Mistral."""
    made = Tokenizer(models.BPE(byte_fallback=kind == "mistral"))
    if kind == "gpt2":
        made.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
    elif kind == "mistral":
        made.pre_tokenizer = cuts.Metaspace(prepend_scheme="first", split=True)
    else:
        made.normalizer = normalizers.NFC() if kind == "qwen" else None
        pattern = Regex(QWEN if kind == "qwen" else LLAMA)
        byte_level = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = cuts.Sequence([cuts.Split(pattern, "isolated"), byte_level])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "mistral" else []
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[*SPECIAL, *fallback],
        initial_alphabet=[MARK] if kind == "mistral" else cuts.ByteLevel.alphabet(),
    )
    made.train_from_iterator((page.read_text() for page in PAGES), trainer)
    if kind == "mistral":
        made.pre_tokenizer = cuts.Metaspace(prepend_scheme="first", split=False)
    return made


PIECES = ["the", " answer", "'s", "12345", "x", ".", ",\n", " ", "\n", "\t", "\r\n", "\xa0"]
PIECES += ["\u2003", "\x85", "é", "\u0301", "日本", "😀", MARK, "<", ">", *SPECIAL[1:]]
texts = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=30).map("".join)


@pytest.mark.parametrize("kind", ["gpt2", "qwen", "llama", "mistral"])
@settings(max_examples=400)
@given(text=texts)
def test_a_text_has_as_many_tokens_as_its_words(kind: str, text: str) -> None:
    backend = trained(kind)
    counts = counter(backend)
    assert counts is not None
    expected = len(backend.encode(text, add_special_tokens=False))
    assert counts.counts([text, "", text]).tolist() == [expected, 0, expected]


def other(change: Any) -> Tokenizer:
    made = Tokenizer.from_str(trained("gpt2").to_str())
    change(made)
    return made


def lower(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def prefix(made: Tokenizer) -> None:
    made.pre_tokenizer = cuts.ByteLevel(add_prefix_space=True)


def pattern(made: Tokenizer) -> None:
    byte_level = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = cuts.Sequence([cuts.Split(Regex("x y|."), "isolated"), byte_level])


def greedy(made: Tokenizer) -> None:
    made.add_tokens([AddedToken("<tool>", lstrip=True, normalized=False)])


def spaced(made: Tokenizer) -> None:
    made.add_tokens([AddedToken("of the", normalized=False)])


def phrases(made: Tokenizer) -> None:
    """SentencePiece without the end of words: a token may be two of them."""
    made.model = models.BPE({"a": 0, MARK: 1, "b": 2, f"a{MARK}": 3}, [("a", MARK)])
    made.pre_tokenizer = cuts.Metaspace(prepend_scheme="first", split=False)


def dropping(made: Tokenizer) -> None:
    made.model = models.BPE({"a": 0}, [], dropout=0.1)


def unigram(made: Tokenizer) -> None:
    made.model = models.Unigram([("a", 0.0)])


@pytest.mark.parametrize(
    "change", [lower, prefix, pattern, greedy, spaced, phrases, dropping, unigram]
)
def test_a_tokenizer_whose_words_hang_together_is_left_to_itself(change: Any) -> None:
    assert counter(other(change)) is None


def test_words_that_drive_each_other_out_are_counted_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loraline.data.lengths.counting.SLOT_BITS", 3)
    counts = counter(trained("qwen"))
    assert counts is not None
    text = " ".join(map(str, range(100)))
    expected = len(trained("qwen").encode(text))
    assert counts.counts([text, text]).tolist() == [expected, expected]
    assert counts.counts([text]).tolist() == [expected]
