"""Near rows and images are found, others are not."""

from __future__ import annotations

import io
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import kept, picture, write_lines
from PIL import Image

from loraline.data import duplicates

WORDS = [f"word{n}" for n in range(500)]


def text(seed: int, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def pairs_of(texts: list[str], shown: list[int] | None = None) -> set[tuple[int, int]]:
    shows = np.array(shown or [0] * len(texts), np.uint64)
    result = duplicates.near_texts(duplicates.banded(duplicates.signatures(texts)), shows)
    return {tuple(pair) for pair in result.tolist()}


def test_texts_that_differ_in_two_words_of_sixty_are_near_and_others_are_not() -> None:
    one = text(1)
    near = [*one[:20], "other", *one[21:50], "words", *one[51:]]
    assert pairs_of([" ".join(words) for words in (one, text(2), near, text(3))]) == {(2, 0)}


def test_near_texts_of_other_images_are_no_duplicates() -> None:
    same = " ".join(text(1))
    assert pairs_of([same, same, same], [1, 2, 1]) == {(2, 0)}


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6))
def test_rows_have_one_number_where_their_media_are_near(labels: list[list[int]]) -> None:
    row = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
    media = np.array(list(itertools.chain.from_iterable(labels)), np.int64)
    numbers = duplicates.media_of_rows(len(labels), row, media)
    for first, second in itertools.product(range(len(labels)), repeat=2):
        are_near = sorted(labels[first]) == sorted(labels[second])
        assert (numbers[first] == numbers[second]) == are_near


def test_no_text_and_one_word_are_compared_like_others() -> None:
    assert pairs_of(["", "word", "", "word"]) == {(2, 0), (3, 1)}
    assert pairs_of([]) == set()


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.randoms(use_true_random=False))
def test_all_pairs_of_hashes_within_three_bits_are_connected(hashes: list[int], rng) -> None:
    for value in list(hashes):
        flipped = value
        for bit in rng.sample(range(64), rng.randint(0, 5)):
            flipped ^= 1 << bit
        hashes.append(flipped)
    result = duplicates.near_images(np.array(hashes, np.uint64))
    labels = duplicates.clusters(len(hashes), result)
    for later, earlier in result.tolist():
        assert (hashes[later] ^ hashes[earlier]).bit_count() <= duplicates.NEAR_BITS
    for i, one in enumerate(hashes):
        for j, two in enumerate(hashes):
            if (one ^ two).bit_count() <= duplicates.NEAR_BITS:
                assert labels[i] == labels[j]


@settings(max_examples=50)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_clusters_are_the_classes_of_an_equivalence(count: int, links: list) -> None:
    links = [(a, b) for a, b in links if a < count and b < count]
    labels = duplicates.clusters(count, np.array(links, np.int64).reshape(-1, 2))
    for one, two in links:
        assert labels[one] == labels[two]
    for index, label in enumerate(labels):
        assert label <= index
        assert labels[label] == label


def test_an_image_stays_near_itself_when_it_is_saved_smaller() -> None:
    import imagehash

    image = Image.open(io.BytesIO(picture(3, (320, 240))))
    buffer = io.BytesIO()
    image.resize((300, 225)).save(buffer, "JPEG", quality=80)
    again = Image.open(buffer)
    assert imagehash.phash(image) - imagehash.phash(again) <= duplicates.NEAR_BITS


def folder(tmp_path, splits: dict[str, list[dict]]):
    for name, rows in splits.items():
        write_lines(tmp_path / "data" / f"{name}.jsonl", rows)
    return tmp_path / "data"


def row(words: list[str] | str, answer: str = "yes") -> dict[str, str]:
    return {"question": words if isinstance(words, str) else " ".join(words), "answer": answer}


FILLER = [row(text(n)) for n in range(50, 53)]


@pytest.mark.parametrize("action", ["drop", "keep"])
def test_a_row_in_train_and_test_is_a_leak_and_leaves_train(tmp_path, prepare, action: str) -> None:
    splits = {
        "train": [row("a b c"), FILLER[0]],
        "validation": [FILLER[1]],
        "test": [row("A b  c")],
    }
    merged = prepare(folder(tmp_path, splits), on=(f"leaks={action}",))
    assert merged.counts[f"leaks {action}"] == 1
    assert merged.rows == {"train": 1 if action == "drop" else 2, "validation": 1, "test": 1}


def test_rows_that_part_one_text_elsewhere_are_no_duplicates(tmp_path, prepare) -> None:
    words = text(1, 9)
    rows = [
        {"question": " ".join(words[:cut]), "answer": " ".join(words[cut:])} for cut in (3, 5, 8, 5)
    ]
    merged = prepare(write_lines(tmp_path / "train.jsonl", rows))
    assert len(kept(merged)) == 3
    assert merged.counts["duplicates drop"] == 1


def test_validation_leaks_into_test_too(tmp_path, prepare) -> None:
    splits = {"train": FILLER[:1], "validation": [row("a"), FILLER[1]], "test": [row("a")]}
    assert prepare(folder(tmp_path, splits)).rows == {"train": 1, "validation": 1, "test": 1}


def test_nearly_the_same_row_across_splits_is_a_near_leak(tmp_path, prepare) -> None:
    one = text(1)
    near = row([*one[:30], "other", *one[31:]])
    splits = {"train": [near, FILLER[0]], "validation": [FILLER[1]], "test": [row(one)]}
    data = folder(tmp_path, splits)
    assert prepare(data).counts == {"near_leaks keep": 1}
    assert prepare(data, on=("near_leaks=drop",)).rows["train"] == 1


def test_nearly_the_same_row_of_a_split_is_a_near_duplicate(tmp_path, prepare) -> None:
    one = text(1)
    near = row([*one[:30], "other", *one[31:]])
    splits = {
        "train": [row(one), near, row(text(2))],
        "validation": FILLER[:1],
        "test": FILLER[1:2],
    }
    merged = prepare(folder(tmp_path, splits), on=("near_duplicates=drop",))
    assert merged.counts == {"near_duplicates drop": 1}
    assert kept(merged)[1].question == " ".join(one)


@pytest.mark.parametrize("smaller", [False, True])
def test_an_image_in_train_and_test_is_a_leak(tmp_path, prepare, smaller: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"{number}.png").write_bytes(picture(number, (320, 240)))
    copy = Image.open(data / "0.png")
    (copy.resize((300, 225)) if smaller else copy).save(data / "copy.png")
    if not smaller:
        (data / "copy.png").write_bytes((data / "0.png").read_bytes())
    for split, names in {"train": "01", "validation": "2", "test": "3c"}.items():
        rows = [
            {"file_name": "copy.png" if n == "c" else f"{n}.png", "text": f"{split} {n}"}
            for n in names
        ]
        write_lines(data / f"{split}.jsonl", rows)
    (data / "prompt.txt").write_text("What is it?")
    merged = prepare(data, modality="vision")
    assert merged.counts == ({"near_leaks keep": 1} if smaller else {"leaks drop": 1})
