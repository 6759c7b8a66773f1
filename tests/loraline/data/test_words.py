"""Words get numbers that are their own, wherever they stand."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraline.data import words

texts = st.lists(st.text(alphabet="ab\0é ", max_size=20).map(str.encode), max_size=20)


@given(texts=texts)
def test_texts_are_cut_at_every_space(texts: list[bytes]) -> None:
    result = words.words(texts)
    expected = [text.split(b" ") for text in texts]

    assert result.counts.tolist() == list(map(len, expected))
    assert [result[index] for index in range(len(result.numbers))] == list(chain(*expected))


@given(texts=texts)
def test_words_have_the_same_number_where_they_are_the_same(texts: list[bytes]) -> None:
    result = words.words(texts)
    named = {(number, result[index]) for index, number in enumerate(result.numbers.tolist())}

    assert len(named) == len(dict(named)) == len({word for _, word in named})


@pytest.mark.parametrize("size", [2, 7, 300, 1000])
def test_numbers_do_not_depend_on_where_blocks_begin(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [b"one two", b"", b"three " * 50, b"x" * 999, b"y" * 200 + b" four", b"two"]
    expected = words.words(texts).numbers.tolist()
    monkeypatch.setattr(words, "BLOCK", size)
    monkeypatch.setattr(words, "LONGEST", min(size, words.LONGEST))
    words.tables.cache_clear()
    result = words.words(texts)
    again = dict(
        zip(map(result.__getitem__, range(len(expected))), result.numbers.tolist(), strict=True)
    )
    words.tables.cache_clear()

    short = [i for i in range(len(expected)) if len(result[i]) <= min(size, words.LONGEST)]
    assert [result.numbers.tolist()[i] for i in short] == [expected[i] for i in short]
    assert len(set(again.values())) == len(again)


def test_long_words_that_the_polynomial_takes_for_each_other_are_told_apart() -> None:
    # Thue and Morse's words: their polynomials are equal modulo 2**64, whatever the factor.
    one, other = "a", "b"
    for _ in range(11):
        one, other = one + other, other + one
    first, second = words.words([one.encode(), other.encode()]).numbers.tolist()

    assert first != second
