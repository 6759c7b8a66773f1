"""The words of many texts as numbers, by operations on arrays instead of a loop over words.

A word is the text between two spaces. Its number is a polynomial of its bytes modulo 2**64, as
the difference of two prefix sums (Karp and Rabin 1987), made to look random.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTOR = 0x5851F42D4C957F2D
"""The polynomial's base: odd, so that it has an inverse (Knuth's multiplier for MMIX)."""

MIX = 0x9E3779B97F4A7C15
"""Odd and without pattern: the golden ratio in 64 bits."""

LONGEST = 256
"""Bytes of a word from which it is numbered by BLAKE2: texts of a thousand bytes and more can be
made to have equal polynomials whatever the factor (Pachocki and Radoszewski 2013)."""

BLOCK = 2**17
"""Bytes of text whose sums are held at once: they stay in a core's own cache."""


@dataclass(frozen=True)
class Words:
    """The words of some texts, one after the other."""

    numbers: NDArray[Any]
    """uint64 of shape (words,), the same for the same word in every process."""

    counts: NDArray[Any]
    """Words of each text, int64 of shape (texts,); an empty text is one empty word."""

    joined: bytes
    starts: NDArray[Any]
    ends: NDArray[Any]
    """Where each word begins and ends in `joined`, int64 of shape (words,)."""

    def __getitem__(self, index: int) -> bytes:
        return self.joined[self.starts[index] : self.ends[index]]


def words(texts: Sequence[bytes]) -> Words:
    """Cut texts at single spaces, and number their words."""
    import numpy as np

    joined = b" ".join(texts)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    if not texts:
        return Words(sizes.astype(np.uint64), sizes, joined, sizes, sizes)
    content = np.frombuffer(joined, np.uint8)
    spaces = np.flatnonzero(content == ord(" "))
    starts, ends = np.append(0, spaces + 1), np.append(spaces, len(content))
    counts = np.diff(ends.searchsorted(np.cumsum(sizes + 1) - 1) + 1, prepend=0)
    numbers = np.zeros(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        stop = max(first + 1, int(ends.searchsorted(begin + BLOCK, "right")))
        if ends[stop - 1] - begin <= BLOCK:
            block, chosen = content[begin : ends[stop - 1]], slice(first, stop)
            numbers[chosen] = polynomials(block, starts[chosen] - begin, ends[chosen] - begin)
        first = stop
    for long in np.flatnonzero(ends - starts > LONGEST):
        digest = hashlib.blake2b(joined[starts[long] : ends[long]], digest_size=8).digest()
        numbers[long] = int.from_bytes(digest, "big")
    return Words(numbers, counts, joined, starts, ends)


def polynomials(block: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
    """Numbers of words that begin and end at these places of a block of bytes."""
    import numpy as np

    powers, inverses = tables()
    sums = np.zeros(len(block) + 1, np.uint64)
    # One is added since a byte of zero makes a word another one, too.
    np.cumsum((block + np.uint64(1)) * powers[: len(block)], out=sums[1:])
    return scattered((sums[ends] - sums[starts]) * inverses[starts])


@functools.cache
def tables() -> tuple[NDArray[Any], NDArray[Any]]:
    """Powers of FACTOR and of its inverse, from 0 to BLOCK."""
    import numpy as np

    columns = []
    for factor in (FACTOR, pow(FACTOR, -1, 2**64)):
        powers = np.full(BLOCK + 1, factor, np.uint64)
        powers[0] = 1
        columns.append(powers.cumprod())
    return columns[0], columns[1]


def scattered(values: NDArray[Any]) -> NDArray[Any]:
    """Each uint64 as another that looks unrelated: the finalizer of SplitMix64 (Steele 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
