"""Set LaTeX formulas as images, and train once the base that `smoke-vision` fine-tunes.

    python test_data/make_vision.py data
    python test_data/make_vision.py base

`data` writes metadata.jsonl and images/: formulas in Computer Modern. `base` trains a tiny Qwen3-VL
on other formulas, set in DejaVu Sans, and writes base/. Two CPU cores, ten minutes.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import click
import tiny_bases

FOLDER = Path(__file__).parent / "vision"
SIZE = (168, 28)
"""Width and height of an image in pixels: 12 x 2 patches, 6 image tokens."""

PROMPT = "Write the formula as LaTeX."
ROWS = 1200
BASE_ROWS = 8000
BASE_STEPS = 1500


@click.group()
def make_vision() -> None:
    """Make the vision data, or the base that is fine-tuned on it."""


@make_vision.command()
def data() -> None:
    """Write metadata.jsonl, images/ and prompt.txt: formulas in Computer Modern."""
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    (FOLDER / "prompt.txt").write_text(PROMPT + "\n")
    with (FOLDER / "metadata.jsonl").open("w") as lines:
        for number, text in enumerate(itertools.islice(formulas(1), ROWS), start=1):
            name = f"images/{number:04d}.png"
            (FOLDER / name).write_bytes(draw(text, "cm"))
            lines.write(json.dumps({"file_name": name, "text": text}) + "\n")


@make_vision.command()
def base() -> None:
    """Train the base on formulas that are not in the data, set in DejaVu Sans."""
    from loraline.base.encoding import Encoder
    from loraline.records import from_prompt

    folder = FOLDER / "base"
    ours = set(itertools.islice(formulas(1), ROWS))
    others = (text for text in formulas(2) if text not in ours)
    texts = list(itertools.islice(others, BASE_ROWS))
    tiny_bases.build("qwen3-vl", folder, [*texts, PROMPT])
    pixels = SIZE[0] * SIZE[1]
    encoder = Encoder(folder, "vision", min_pixels=pixels, max_pixels=pixels)
    rows = [
        encoder.encode(from_prompt(PROMPT, "", text, draw(text, "dejavusans"))) for text in texts
    ]
    tiny_bases.train(folder, "vision", encoder, rows, steps=BASE_STEPS)


def atom(pick: random.Random) -> str:
    return pick.choice([*"abxyn", *"01234", r"\alpha", r"\pi"])


def term(pick: random.Random) -> str:
    kind = pick.choice(["atom", "power", "index", "fraction", "root"])
    first, second = atom(pick), atom(pick)
    return {
        "atom": first,
        "power": f"{first}^{{{second}}}",
        "index": f"{first}_{{{second}}}",
        "fraction": rf"\frac{{{first}}}{{{second}}}",
        "root": rf"\sqrt{{{first}}}",
    }[kind]


def formulas(seed: int) -> Iterator[str]:
    """Distinct formulas of one to three terms, endless."""
    pick = random.Random(seed)
    seen = set()
    while True:
        text = term(pick)
        for _ in range(pick.choice([0, 1, 1, 2, 2])):
            text += f" {pick.choice('+-=')} {term(pick)}"
        if text not in seen:
            seen.add(text)
            yield text


def draw(formula: str, family: str) -> bytes:
    """A PNG of the formula in black on white, at the left and centred in height."""
    import numpy as np
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from PIL import Image

    font = FontProperties(math_fontfamily=family, size=14)
    ink = np.asarray(MathTextParser("agg").parse(f"${formula}$", dpi=72, prop=font).image)
    ink = ink[: SIZE[1], : SIZE[0] - 2]
    page = np.full((SIZE[1], SIZE[0]), 255, dtype=np.uint8)
    top = (SIZE[1] - ink.shape[0]) // 2
    page[top : top + ink.shape[0], 2 : 2 + ink.shape[1]] -= ink
    png = io.BytesIO()
    Image.fromarray(page).save(png, "PNG", optimize=True)
    return png.getvalue()


if __name__ == "__main__":
    make_vision()
