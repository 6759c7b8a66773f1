"""Rows and images that are the same or nearly so, within a split and across splits.

Texts are compared by MinHash signatures over pairs of words (Broder 1997), found through banding
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4); images by 64-bit perceptual
hashes. Both work on arrays, so a million rows take some hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from loraline.data.words import MIX, scattered, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERMUTATIONS = 64
BANDS, WIDTH = 16, 4
"""Bands of a signature, and values of a band. Rows that share 80 % of their word pairs have an
equal band with probability 1 - (1 - 0.8**4)**16 = 0.9998."""

SIMILAR = 0.8
"""Share of equal signature values from which texts are near; it estimates Jaccard similarity."""

NEAR_BITS = 3
"""Bits in which near images' hashes may differ; 4 bands of 16 bits find all of these."""

SEED = 8737
CROWD = 4096
"""Distinct hashes with an equal band of which all are compared; of more, only neighbours are."""

CHUNK = 65536

THREADS = 2
"""Bands that are sorted at the same time, 50 MB a million rows each."""


def signatures(texts: Sequence[str]) -> NDArray[Any]:
    """MinHash signatures of normalised texts, uint32 of shape (texts, PERMUTATIONS).

    A text is the set of its pairs of neighbouring words; one word stands for itself.
    """
    import numpy as np
    from rensa import RMinHash

    cut = words([text.encode("utf-8", "surrogatepass") for text in texts])
    sizes, hashes = cut.counts, cut.numbers
    last_words = np.cumsum(sizes) - 1
    pairs = hashes.copy()
    pairs[:-1] = scattered(hashes[:-1]) + hashes[1:]
    pairs[last_words] = hashes[last_words]
    within = np.ones(len(pairs), bool)
    within[last_words[sizes > 1]] = False
    starts = np.cumsum([0, *np.maximum(sizes - 1, 1)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        pairs[within], starts, PERMUTATIONS, SEED
    )
    values = chain.from_iterable(matrix.to_rows())
    return np.fromiter(values, np.uint32, len(texts) * PERMUTATIONS).reshape(-1, PERMUTATIONS)


def banded(signed: NDArray[Any]) -> NDArray[Any]:
    """Signatures, (rows, PERMUTATIONS), as their bands, (BANDS, rows, WIDTH)."""
    return signed.reshape(-1, BANDS, WIDTH).swapaxes(0, 1)


def near_texts(signed: NDArray[Any], media: NDArray[Any]) -> NDArray[Any]:
    """Pairs (row, earlier row) of rows with near texts that show the same media, shape (pairs, 2).

    `signed` is uint32 of shape (BANDS, rows, WIDTH) and may be a memory map, of which a band is
    read at a time, and else only rows that met; `media` is uint64 of shape (rows,), equal where the
    media are near.
    """
    import numpy as np

    def near_in(band: int) -> NDArray[Any]:
        """Pairs of rows that are near, among those whose signatures have an equal band."""
        keys = media.copy()
        for column in range(WIDTH):
            keys = keys * np.uint64(MIX) + signed[band, :, column]
        pairs = np.concatenate([np.empty((0, 2), np.int64), *neighbours(keys)])
        return pairs[similar(signed, pairs)]

    near = np.empty((0, 2), np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        for pairs in pool.map(near_in, range(BANDS)):
            near = unique_pairs(np.concatenate([near, pairs]))
    return near


def media_of_rows(rows: int, row: NDArray[Any], label: NDArray[Any]) -> NDArray[Any]:
    """A number for each row, equal where rows have near media, in any order; shape (rows,).

    `row` and `label` are each medium's row, and the cluster of media that it is near to.
    """
    import numpy as np

    numbers = np.zeros(rows, np.uint64)
    # Scattered, since sums of small numbers are often equal.
    np.add.at(numbers, row, scattered((label + 1).astype(np.uint64)))
    return numbers


def near_images(hashes: NDArray[Any]) -> NDArray[Any]:
    """Pairs (image, earlier image) that are near, shape (pairs, 2); `hashes` is uint64."""
    import numpy as np

    near = np.empty((0, 2), np.int64)
    for band in range(NEAR_BITS + 1):
        keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        for pairs in near_pairs(keys, hashes):
            near = unique_pairs(np.concatenate([near, pairs]))
    return near


def neighbours(keys: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Pairs of entries with equal keys: each with the first of its key, and with the one before."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    equals_previous = keys[order[1:]] == keys[order[:-1]]
    if not equals_previous.any():
        return
    starts = np.maximum.accumulate(
        np.where(np.r_[True, ~equals_previous], np.arange(len(order)), 0)
    )
    later = np.flatnonzero(equals_previous) + 1
    yield np.stack([order[later], order[starts[later]]], axis=1)
    yield np.stack([order[later], order[later - 1]], axis=1)


def near_pairs(keys: NDArray[Any], hashes: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Pairs of near hashes among all whose keys are equal; a key is a band of a hash.

    Equal hashes are near, and only the first of them is compared with others. The hashes are sorted
    by key. Then each is compared with the next, with the second next and so on, until no two that
    at that distance have equal keys.
    """
    import numpy as np

    yield from neighbours(hashes)
    distinct, first = np.unique(hashes, return_index=True)
    by_key = first[np.lexsort((distinct, keys[first]))]
    for distance in range(1, min(len(by_key), CROWD)):
        left, right = by_key[:-distance], by_key[distance:]
        same_key = keys[left] == keys[right]
        if not same_key.any():
            return
        left, right = left[same_key], right[same_key]
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= NEAR_BITS
        pairs = np.stack([left[near], right[near]], axis=1)
        yield np.sort(pairs, axis=1)[:, ::-1]


def similar(signed: NDArray[Any], pairs: NDArray[Any]) -> NDArray[Any]:
    """Whether the signatures of each pair agree in enough values, bool of shape (pairs,)."""
    import numpy as np

    agreed = [
        (signed[:, part[:, 0]] == signed[:, part[:, 1]]).mean(axis=(0, 2)) >= SIMILAR
        for part in np.array_split(pairs, max(1, len(pairs) // CHUNK))
    ]
    return np.concatenate(agreed)


def unique_pairs(pairs: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.unique(pairs, axis=0) if len(pairs) else pairs


def clusters(count: int, pairs: NDArray[Any]) -> NDArray[Any]:
    """Label of each of `count` entries, equal where pairs connect them: the first entry's index."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return np.arange(count)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, labels = connected_components(links, directed=False)
    _, first = np.unique(labels, return_index=True)
    return first[labels]


def repeated(keys: NDArray[Any]) -> NDArray[Any]:
    """Whether an earlier entry has the same key, bool of shape (entries,)."""
    import numpy as np

    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    return again


def leaked(keys: NDArray[Any], splits: NDArray[Any], included: NDArray[Any]) -> NDArray[Any]:
    """Whether an entry's key also stands in a later split, bool of shape (entries,).

    `splits` counts from train (0) to test (2); `included` says which entries take part.
    """
    import numpy as np

    repeats = np.zeros(len(keys), bool)
    for split in (0, 1):
        earlier, later = included & (splits == split), included & (splits > split)
        repeats[earlier] = np.isin(keys[earlier], keys[later])
    return repeats
