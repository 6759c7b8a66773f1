"""How many tokens texts have, counted word by word instead of by tokenizing whole texts.

Byte-level BPE (Radford et al. 2019) cuts a text into words before it merges, and SentencePiece's
BPE (Kudo and Richardson 2018) has no token that goes on over the end of a word. Where a tokenizer
is one of the two, a text has as many tokens as its words together, and the words of a language
repeat: each is tokenized once. What is not known to be so is left to the tokenizer itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraline.data.words import Words, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Where Qwen2 to Qwen3, and Llama 3, cut texts into words. A single space between two characters
that are none begins a word in each of them, and no word looks back."""

SLOT_BITS = 18
"""Bits of a word's number that are its place in what is remembered, 16 bytes a place: 4 MiB."""

INNER = b"\xff"
"""Stands in a word for a space that begins none; no byte of UTF-8."""

MARK = "\u2581"
"""What SentencePiece writes for a space."""

ANCHOR = "a"
"""Stands before a word that is counted, since tokenizers treat the first one in their own way."""


class WordCounts:
    """Tokens that a word adds to the text before it, found by the tokenizer at first sight.

    A word has one place, where it drives out another: what is remembered does not grow.
    """

    def __init__(self, backend: Any, before: str = "", space: str = "") -> None:
        import numpy as np

        self.backend, self.before = backend, before + space
        self.numbers = np.zeros(1 << SLOT_BITS, np.uint64)
        # A number whose place is another one.
        self.numbers[0] = 2**64 - 1
        self.counts = np.zeros(1 << SLOT_BITS, np.int64)
        self.alone = len(backend.encode(before, add_special_tokens=False))

    def tokens(self, vocabulary: Words, chosen: NDArray[Any]) -> NDArray[Any]:
        """Tokens of some words, given by their places, int64 of the shape of `chosen`."""
        import numpy as np

        numbers = vocabulary.numbers[chosen]
        places = numbers >> np.uint64(64 - SLOT_BITS)
        tokens = self.counts[places]
        new = np.flatnonzero(self.numbers[places] != numbers)
        if len(new):
            fresh, first, again = np.unique(numbers[new], return_index=True, return_inverse=True)
            texts = [
                vocabulary[index].replace(INNER, b" ").decode() for index in chosen[new[first]]
            ]
            counts = self.tokenized(texts)
            tokens[new] = counts[again]
            places = fresh >> np.uint64(64 - SLOT_BITS)
            self.numbers[places], self.counts[places] = fresh, counts
        return tokens

    def tokenized(self, texts: Sequence[str]) -> NDArray[Any]:
        import numpy as np

        texts = [self.before + text for text in texts]
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return np.array([len(tokens) for tokens in encodings]) - self.alone


class Counter:
    """Counts of tokens, without special ones, of a tokenizer that `counter` knows to allow it."""

    def __init__(self, backend: Any, added: Iterable[str]) -> None:
        self.backend = backend
        self.first, self.later = WordCounts(backend), WordCounts(backend, ANCHOR, " ")
        # Where a space is not the beginning of a word: after another space, and after an added
        # token or a mark, behind which the tokenizer begins anew.
        ends = sorted({MARK, *(text[-1] for text in added)})
        self.apart = ["  ", *(f"{end} " for end in ends)]
        end_characters = "".join(map(re.escape, ends))
        self.odd = re.compile(rf"\s\s|[{end_characters}] ")
        self.cut = re.compile(rf"(?<=[^\s{end_characters}]) (?=\S)")

    def is_odd(self, text: str) -> bool:
        if text.isprintable():
            # There are no other spaces, and no need of the slower pattern.
            return any(pair in text for pair in self.apart)
        return self.odd.search(text) is not None

    def encoded(self, text: str, may_be_odd: bool) -> bytes:
        """A text whose spaces begin words; there are others where it is odd, and at its start."""
        if may_be_odd and self.is_odd(text):
            return b" ".join(word.encode().replace(b" ", INNER) for word in self.cut.split(text))
        return INNER + text[1:].encode() if text.startswith(" ") else text.encode()

    def counts(self, texts: Sequence[str]) -> NDArray[Any]:
        """Tokens of each text, int64 of shape (texts,)."""
        import numpy as np

        may_be_odd = self.is_odd(ANCHOR.join(texts))
        numbered = words([self.encoded(text, may_be_odd) for text in texts])
        starts = np.cumsum(numbered.counts) - numbered.counts
        tokens = np.empty(len(numbered.numbers), np.int64)
        tokens[starts] = self.first.tokens(numbered, starts)
        later = np.ones(len(tokens), bool)
        later[starts] = False
        tokens[later] = self.later.tokens(numbered, np.flatnonzero(later))
        return np.add.reduceat(tokens, starts)


def counter(backend: Any) -> Counter | None:
    """A counter for a tokenizer of `tokenizers`, or None where words are not sure to do."""
    description = json.loads(backend.to_str())
    normalizer = steps(description["normalizer"], "normalizers")
    splitter = steps(description["pre_tokenizer"], "pretokenizers")
    added = description["added_tokens"]
    regular = (
        description["model"]["type"] == "BPE"
        and not description["model"].get("dropout")
        and not description["truncation"]
        and not description["padding"]
        and all(is_plain(token) for token in added)
        and (
            is_byte_level(normalizer, splitter)
            or is_sentencepiece(description, normalizer, splitter)
        )
    )
    return Counter(backend, [token["content"] for token in added]) if regular else None


def steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def is_plain(token: Mapping[str, Any]) -> bool:
    """Whether an added token is found wherever it stands, and takes no space around it along."""
    strips = token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"]
    return not strips and not re.search(r"\s", token["content"])


def is_byte_level(
    normalizer: Sequence[Mapping[str, Any]], splitter: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether texts are cut into words by GPT-2's pattern or one of PATTERNS.

    NFC, the only normalizer taken, composes nothing with a space.
    """
    if [step["type"] for step in normalizer] not in ([], ["NFC"]) or not splitter:
        return False
    *before, final = splitter
    if final["type"] != "ByteLevel" or final["add_prefix_space"]:
        return False
    if not before:
        return bool(final["use_regex"])
    return not final["use_regex"] and [
        (step["type"], step["pattern"].get("Regex") in PATTERNS, step["behavior"], step["invert"])
        for step in before
    ] == [("Split", True, "Isolated", False)]


def is_sentencepiece(
    description: Mapping[str, Any],
    normalizer: Sequence[Mapping[str, Any]],
    splitter: Sequence[Mapping[str, Any]],
) -> bool:
    """Whether spaces are marks that tokens only begin with, as in Mistral's and Llama 2's.

    A merge across the end of a word would make a token with a mark after something else.
    """
    replaces = [step["type"] for step in normalizer] in (["Replace"], ["Prepend", "Replace"])
    if splitter:
        sound = not normalizer and [
            (step["type"], step.get("replacement"), step.get("split")) for step in splitter
        ] == [("Metaspace", MARK, False)]
    else:
        sound = (
            replaces
            and normalizer[-1]["pattern"] == {"String": " "}
            and normalizer[-1]["content"] == MARK
        )
    vocabulary = description["model"]["vocab"]
    marked = (token.lstrip(MARK) for token in vocabulary)
    return sound and MARK in vocabulary and not any(MARK in text for text in marked)
