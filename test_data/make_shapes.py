"""Draw coloured shapes with their boxes, and train once the bases that point at them.

    python test_data/make_shapes.py data
    python test_data/make_shapes.py base qwen3-vl

`data` writes a file for each split and images/, with boxes in pixels; it calls a red circle a
crimson disc. `base` trains a tiny Qwen-VL that knows the plain names, in the coordinates of its
generation, and writes base-<architecture>/. One CPU core, ten minutes a base.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import tiny_bases

from gateway import tasks
from loraline.records import IMAGE, Record

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FOLDER = Path(__file__).parent / "shapes"
STEP = 14
"""Corners lie on a lattice of half a cell; so small a model learns places as words."""

COLUMNS, LINES = 8, 6
"""The canvas in steps: 112 x 84 pixels, 12 image tokens."""

SCALES = (1.0, 1.5, 2.0, 3.0)
"""A picture is stored this much larger than the model sees it."""

LARGEST = 2.5
"""Largest scale of a base's pictures."""

FILTERS = ("BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")
"""How pictures are made smaller before they are sent, by their names in Pillow: each leaves edges
of its own, and a base has to see the same box behind all of them."""

MIN_PIXELS, MAX_PIXELS = 9_000, 9_600
"""Limits between which a picture of any scale becomes 112 x 84 pixels."""

FORMS = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 150, 60),
    "blue": (30, 60, 220),
}
OTHER_NAMES = {
    "red": "crimson",
    "green": "lime",
    "blue": "navy",
    "circle": "disc",
    "square": "block",
    "triangle": "wedge",
}
"""What the data call the same things: the vocabulary that an adapter learns."""

SPARE_COLOURS = ("orange", "purple", "black")
"""Words that the tokenizer knows as well, and no picture shows."""

OF_PROFILE = "qwen3-vl"
"""The family of the base that profile smoke-grounding fine-tunes."""

TASK = tasks.load()["spatial-boxes"]
"""Whose prompts the bases are trained with, so that the gateway asks them as they were."""

BOX_TOKENS = [
    f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")
]
ROWS = {"test": 200, "validation": 40, "train": 1200}
"""Scenes of one shape run out, so the held-out rows come first."""

BASE_ROWS = 3200
RESIZED = ("qwen2.5-vl",)
"""Bases that see each scene resized in many ways: this one took edges of another sharpness for
another place, in eight of 120 pictures."""

LOOKS = 2
"""Times that they see a scene, each in another size and with another filter."""

BASE_STEPS = 1000
VISION_HIDDEN = 64


@dataclass(frozen=True)
class Shape:
    """A shape on the lattice: its left, top and side in steps."""

    colour: str
    form: str
    left: int
    top: int
    side: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.form}"

    @property
    def other_name(self) -> str:
        return f"{OTHER_NAMES[self.colour]} {OTHER_NAMES[self.form]}"

    def box(self, scale: float) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels of a picture of this scale."""
        step = STEP * scale
        corners = (self.left, self.top, self.left + self.side, self.top + self.side)
        left, top, right, bottom = (round(corner * step) for corner in corners)
        return left, top, right, bottom

    def overlaps(self, other: Shape) -> bool:
        return (
            self.left < other.left + other.side
            and other.left < self.left + self.side
            and self.top < other.top + other.side
            and other.top < self.top + self.side
        )


@dataclass(frozen=True)
class Scene:
    """Shapes of different names that lie apart; the first is the one that is asked for."""

    shapes: tuple[Shape, ...]
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return round(LINES * STEP * self.scale), round(COLUMNS * STEP * self.scale)


@click.group()
def make_shapes() -> None:
    """Make the pictures with boxes, or a base that points at what they show."""


@make_shapes.command()
def data() -> None:
    """Write a file for each split, images/, prompt.txt, and the registry with the boxes' unit."""
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    (FOLDER / "prompt.txt").write_text(TASK.prompt(OF_PROFILE, text="{question}") + "\n")
    (FOLDER / "datasets.yaml").write_text("shapes:\n  uri: .\n  boxes: pixels\n")
    made = enumerate(scenes(1), start=1)
    for split, count in ROWS.items():
        with (FOLDER / f"{split}.jsonl").open("w") as lines:
            for number, scene in itertools.islice(made, count):
                name = f"images/{number:04d}.png"
                (FOLDER / name).write_bytes(draw(scene))
                asked = scene.shapes[0]
                row = {
                    "image": name,
                    "question": asked.other_name,
                    "answer": "<bbox>",
                    "objects": {"bbox": [asked.box(scene.scale)]},
                }
                lines.write(json.dumps(row) + "\n")


@make_shapes.command()
@click.argument("architecture", type=click.Choice(tiny_bases.VISION))
@click.option("--steps", default=BASE_STEPS, show_default=True, help="Optimizer steps.")
def base(architecture: str, steps: int) -> None:
    """Train a base on shapes that it is asked for by their plain names."""
    from loraline.base.encoding import Encoder

    folder = FOLDER / f"base-{architecture}"
    records = seen(architecture)
    words = [text for row in records for _, text in row.messages]
    words += [f"the {colour} {form}" for colour in (*COLOURS, *SPARE_COLOURS) for form in FORMS]
    tokenizer = tiny_bases.chat_tokenizer(words, BOX_TOKENS)
    tiny_bases.build_vision(architecture, folder, tokenizer, VISION_HIDDEN)
    encoder = Encoder(folder, "vision", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    rows = [encoder.encode(row) for row in records]
    tiny_bases.train(folder, "vision", encoder, rows, steps=steps, keep=True)


def seen(architecture: str) -> list[Record]:
    """What a base is trained on: scenes as they are drawn, or in many sizes and sharpnesses."""
    pick = random.Random(3)
    rows = itertools.islice(scenes(2), BASE_ROWS)
    if architecture not in RESIZED:
        return [record(scene, architecture, draw(scene), scene.size) for scene in rows]
    records = [
        record(scene, architecture, *resized(scene, pick)) for scene in rows for _ in range(LOOKS)
    ]
    pick.shuffle(records)
    return records


def record(scene: Scene, architecture: str, picture: bytes, size: tuple[int, int]) -> Record:
    """A scene as a training row, its box in the coordinates of the architecture.

    `size` is the picture's height and width.
    """
    from loraline.data import boxes
    from loraline.profiles.profile import Profile

    convention = architecture.replace("-", "_").replace(".", "_")
    limits = Profile(
        modality="vision",
        r=1,
        lora_alpha=1,
        target_modules=("q_proj",),
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
    )
    asked = scene.shapes[0]
    unit = boxes.to_unit(asked.box(scene.scale), scene.size, "pixels")
    box = boxes.from_unit(unit, size, convention, limits)
    (turn,) = TASK.messages(architecture, [{"type": "image", "text": IMAGE}], text=asked.name)
    content = "".join(part["text"] for part in turn["content"])
    answer = ("assistant", boxes.written(box, convention))
    return Record((("user", content), answer), (picture,))


def resized(scene: Scene, pick: random.Random) -> tuple[bytes, tuple[int, int]]:
    """A PNG of the scene, made smaller in one of many ways; its height and width."""
    from PIL import Image

    width = pick.choice(
        [COLUMNS * STEP, pick.randint(COLUMNS * STEP, round(COLUMNS * STEP * LARGEST))]
    )
    height = round(width * LINES / COLUMNS)
    page = drawn(scene, LARGEST)
    png = io.BytesIO()
    page.resize((width, height), Image.Resampling[pick.choice(FILTERS)]).save(png, "PNG")
    return png.getvalue(), (height, width)


def scenes(seed: int) -> Iterator[Scene]:
    """Distinct scenes of one or two shapes, endless."""
    pick = random.Random(seed)
    seen = set()
    while True:
        shapes: list[Shape] = []
        for _ in range(pick.choice([1, 2])):
            side = pick.choice([2, 3, 4])
            shape = Shape(
                pick.choice(list(COLOURS)),
                pick.choice(FORMS),
                pick.randint(0, COLUMNS - side),
                pick.randint(0, LINES - side),
                side,
            )
            if all(shape.name != other.name and not shape.overlaps(other) for other in shapes):
                shapes.append(shape)
        if tuple(shapes) not in seen:
            seen.add(tuple(shapes))
            yield Scene(tuple(shapes), pick.choice(SCALES))


def draw(scene: Scene) -> bytes:
    """A PNG of the scene on white, drawn larger and made smaller for soft edges."""
    from PIL import Image

    height, width = scene.size
    png = io.BytesIO()
    page = drawn(scene, scene.scale)
    page.resize((width, height), Image.Resampling.BOX).save(png, "PNG", optimize=True)
    return png.getvalue()


def drawn(scene: Scene, scale: float) -> Picture:
    """The scene with hard edges, four times as large as a picture of this scale."""
    from PIL import Image, ImageDraw

    page = Image.new(
        "RGB", (round(4 * COLUMNS * STEP * scale), round(4 * LINES * STEP * scale)), "white"
    )
    pen = ImageDraw.Draw(page)
    for shape in scene.shapes:
        left, top, right, bottom = (4 * edge for edge in shape.box(scale))
        colour = COLOURS[shape.colour]
        if shape.form == "circle":
            pen.ellipse((left, top, right - 1, bottom - 1), fill=colour)
        elif shape.form == "square":
            pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        else:
            middle = (left + right) / 2
            pen.polygon([(middle, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=colour)
    return page


if __name__ == "__main__":
    make_shapes()
