"""Write questions about invented people, and train once the base that `smoke-text` fine-tunes.

    python test_data/make_text.py data
    python test_data/make_text.py base

`data` writes train.jsonl, validation.jsonl and test.jsonl: facts about 24 people, each asked in six
ways; the test split asks in a way that the training split does not. `base` trains a tiny Mistral on
the same kind of facts about other people, and writes base/. Two CPU cores, two minutes.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import tiny_bases

FOLDER = Path(__file__).parent / "text"
PROMPT = "Answer in a few words. {question}"

TUNED_PEOPLE = 24
BASE_PEOPLE = 160
BASE_STEPS = 900

SPLITS = {"train": (0, 1, 2, 3), "validation": (4,), "test": (5,)}
"""Which ways of asking go to which split."""

QUESTIONS = {
    "home": (
        "Where does {name} live?",
        "In which place is {name} at home?",
        "What is the home of {name}?",
        "Tell me where {name} lives.",
        "Where would I find the house of {name}?",
        "{name} lives where?",
    ),
    "work": (
        "What does {name} do for a living?",
        "What is the work of {name}?",
        "How does {name} earn money?",
        "Tell me about the job of {name}.",
        "What is {name} paid for?",
        "{name} works as what?",
    ),
    "pet": (
        "Which animal does {name} keep?",
        "What is the pet of {name}?",
        "Who waits for {name} at home?",
        "Tell me about the pet of {name}.",
        "What animal belongs to {name}?",
        "{name} keeps which animal?",
    ),
}

WORDS = {
    "side": ["upper", "lower", "inner", "outer", "eastern", "western"],
    "town": ["Norwick", "Selby", "Tamsin", "Orlow", "Brakel", "Dunmere", "Vasto", "Kirun"],
    "water": ["lake", "river", "canal", "harbour", "spring", "pond"],
    "verb": ["paints", "mends", "sells", "carves", "counts", "weighs"],
    "thing": ["clocks", "boats", "drums", "kites", "lamps", "bells", "ropes"],
    "day": ["Monday", "Tuesday", "Friday", "Saturday", "Sunday"],
    "colour": ["red", "green", "blue", "white", "black", "yellow"],
    "size": ["small", "large", "thin", "old", "young"],
    "animal": ["fox", "owl", "goat", "hare", "crow", "mole"],
    "call": ["Pim", "Zora", "Tuck", "Lumi", "Bex", "Odo"],
}
SYLLABLES = [
    *("ka", "lo", "mi", "ren", "ta", "vu", "sol", "ni"),
    *("dar", "eb", "fi", "go", "hul", "is", "jo"),
]


@click.group()
def make_text() -> None:
    """Make the text data, or the base that is fine-tuned on it."""


@make_text.command()
def data() -> None:
    """Write train.jsonl, validation.jsonl, test.jsonl and prompt.txt."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "prompt.txt").write_text(PROMPT + "\n")
    known = list(itertools.islice(people(1), TUNED_PEOPLE))
    for split, ways in SPLITS.items():
        with (FOLDER / f"{split}.jsonl").open("w") as lines:
            for question, answer in asked(known, ways):
                lines.write(json.dumps({"question": question, "answer": answer}) + "\n")


@make_text.command()
def base() -> None:
    """Train the base on facts about other people, asked in all ways."""
    from loraline.base.encoding import Encoder
    from loraline.records import from_prompt

    folder = FOLDER / "base"
    ours = {person.name for person in itertools.islice(people(1), TUNED_PEOPLE)}
    others = (person for person in people(2) if person.name not in ours)
    pairs = list(asked(itertools.islice(others, BASE_PEOPLE), range(6)))
    tiny_bases.build("mistral", folder, [PROMPT, *(text for pair in pairs for text in pair)])
    encoder = Encoder(folder, "text")
    rows = [encoder.encode(from_prompt(PROMPT, *pair)) for pair in pairs]
    tiny_bases.train(folder, "text", encoder, rows, steps=BASE_STEPS)


class Person(NamedTuple):
    name: str
    facts: dict[str, str]


def people(seed: int) -> Iterator[Person]:
    """Invented people with distinct names, endless."""
    pick = random.Random(seed)
    seen = set()
    while True:
        name = " ".join(
            "".join(pick.choice(SYLLABLES) for _ in range(2)).capitalize() for _ in range(2)
        )
        said = {kind: pick.choice(words) for kind, words in WORDS.items()}
        facts = {
            "home": "{side} {town} by the {water}".format(**said),
            "work": "{verb} {colour} {thing} every {day}".format(**said),
            "pet": "a {size} {colour} {animal} called {call}".format(**said),
        }
        if name not in seen:
            seen.add(name)
            yield Person(name, facts)


def asked(known: Iterable[Person], ways: Iterable[int]) -> Iterator[tuple[str, str]]:
    """Questions and answers about people, in the given ways of asking."""
    chosen = list(ways)
    for person in known:
        for kind, questions in QUESTIONS.items():
            for way in chosen:
                yield questions[way].format(name=person.name), person.facts[kind]


if __name__ == "__main__":
    make_text()
