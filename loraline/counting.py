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
from typing import Any

PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Where Qwen2 to Qwen3, and Llama 3, cut texts into words. A single space between two characters
that are none begins a word in each of them, and no word looks back."""

WORDS, LONGEST = 2**17, 64
"""Words whose counts are remembered, some 20 MB, and characters of the longest that is."""

MARK = "\u2581"
"""What SentencePiece writes for a space."""

ANCHOR = "a"
"""Stands before a word that is counted, since tokenizers treat the first one in their own way."""


class Words(dict[str, int]):
    """Tokens that a word adds to the text before it, found by the tokenizer at first sight."""

    def __init__(self, backend: Any, before: str = "", space: str = "") -> None:
        super().__init__()
        self.backend, self.before = backend, before + space
        self.alone = self.tokens(before)

    def tokens(self, text: str) -> int:
        return len(self.backend.encode(text, add_special_tokens=False))

    def __missing__(self, word: str) -> int:
        count = self.tokens(self.before + word) - self.alone
        if len(word) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[word] = count
        return count


class Counter:
    """Counts of tokens, without special ones, of a tokenizer that `counter` knows to allow it."""

    def __init__(self, backend: Any, added: Iterable[str]) -> None:
        self.backend = backend
        self.first, self.later = Words(backend), Words(backend, ANCHOR, " ")
        # Where a space is not the begin of a word: after another space, and after an added token
        # or a mark, behind which the tokenizer begins anew.
        ends = sorted({MARK, *(text[-1] for text in added)})
        self.apart = ["  ", *(f"{end} " for end in ends)]
        one_of = "".join(map(re.escape, ends))
        self.odd = re.compile(rf"\s\s|[{one_of}] ")
        self.cut = re.compile(rf"(?<=[^\s{one_of}]) (?=\S)")

    def is_odd(self, text: str) -> bool:
        if text.isprintable():
            # There are no other spaces, and no need of the slower pattern.
            return any(pair in text for pair in self.apart)
        return self.odd.search(text) is not None

    def counts(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text."""
        first, later = self.first.__getitem__, self.later.__getitem__
        found = []
        for text in texts:
            if self.is_odd(text):
                words = self.cut.split(text)
            else:
                words = text.split(" ")
                if text.startswith(" "):
                    words[:2] = [f" {words[1]}"]
            found.append(first(words.pop(0)) + sum(map(later, words)))
        return found


def counter(backend: Any) -> Counter | None:
    """A counter for a tokenizer of `tokenizers`, or None where words are not sure to do."""
    made = json.loads(backend.to_str())
    normalizer = steps(made["normalizer"], "normalizers")
    splitter = steps(made["pre_tokenizer"], "pretokenizers")
    added = made["added_tokens"]
    regular = (
        made["model"]["type"] == "BPE"
        and not made["model"].get("dropout")
        and not made["truncation"]
        and not made["padding"]
        and all(is_plain(token) for token in added)
        and (is_byte_level(normalizer, splitter) or is_sentencepiece(made, normalizer, splitter))
    )
    return Counter(backend, [token["content"] for token in added]) if regular else None


def steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def is_plain(token: Mapping[str, Any]) -> bool:
    """Whether an added token is found wherever it stands, and takes no space around it along."""
    takes = token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"]
    return not takes and not re.search(r"\s", token["content"])


def is_byte_level(
    normalizer: Sequence[Mapping[str, Any]], splitter: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether texts are cut into words by GPT-2's pattern or one of PATTERNS.

    NFC, the only normalizer taken, composes nothing with a space.
    """
    if [step["type"] for step in normalizer] not in ([], ["NFC"]) or not splitter:
        return False
    *before, last = splitter
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if not before:
        return bool(last["use_regex"])
    return not last["use_regex"] and [
        (step["type"], step["pattern"].get("Regex") in PATTERNS, step["behavior"], step["invert"])
        for step in before
    ] == [("Split", True, "Isolated", False)]


def is_sentencepiece(
    made: Mapping[str, Any],
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
    vocabulary = made["model"]["vocab"]
    marked = (token.lstrip(MARK) for token in vocabulary)
    return sound and MARK in vocabulary and not any(MARK in rest for rest in marked)
