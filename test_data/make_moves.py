"""Film shapes that move, and train once the base that `smoke-video` fine-tunes.

    python test_data/make_moves.py data
    python test_data/make_moves.py base

`data` writes a file for each split and videos/: a shape moves left, right, up or down, and the
answer names the compass. `base` trains a tiny Qwen3-VL that says left, right, up and down, and
writes base/. One CPU core, some minutes.
"""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import tiny_bases
from make_shapes import COLOURS, FORMS

from loraline.records import VIDEO, Record, Video

FOLDER = Path(__file__).parent / "moves"
SIDE = 28
"""Pixels of a frame's side: an image token a pair of frames."""

FRAMES, FPS = 4, 2.0
SHAPE, PACE = 8, 4
"""Pixels of a shape, and of its way from one frame to the next."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COMPASS = {"left": "west", "right": "east", "up": "north", "down": "south"}
"""What the data call the same directions: the vocabulary that an adapter learns."""

QUESTION = "Where does it go?"
PLACE = "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
"""What a chat template of images needs to show videos as well."""

ROWS = {"test": 100, "validation": 40, "train": 480}
BASE_ROWS = 1600
BASE_STEPS = 300


@dataclass(frozen=True)
class Move:
    """A shape's way through a film, from where its left upper corner begins."""

    colour: str
    form: str
    left: int
    top: int
    direction: str

    def frames(self) -> list[bytes]:
        """The film's frames as PNG."""
        across, down = DIRECTIONS[self.direction]
        places = [
            (self.left + PACE * step * across, self.top + PACE * step * down)
            for step in range(FRAMES)
        ]
        return [draw(self.colour, self.form, *place) for place in places]


@click.group()
def make_moves() -> None:
    """Make the films, or a base that says where they go."""


@make_moves.command()
def data() -> None:
    """Write a file for each split, videos/ and prompt.txt."""
    (FOLDER / "videos").mkdir(parents=True, exist_ok=True)
    (FOLDER / "prompt.txt").write_text("{question}\n")
    made = enumerate(moves(1), start=1)
    for split, count in ROWS.items():
        with (FOLDER / f"{split}.jsonl").open("w") as lines:
            for number, move in itertools.islice(made, count):
                name = f"videos/{number:04d}.gif"
                (FOLDER / name).write_bytes(film(move.frames()))
                row = {"video": name, "question": QUESTION, "answer": COMPASS[move.direction]}
                lines.write(json.dumps(row) + "\n")


@make_moves.command()
@click.option("--steps", default=BASE_STEPS, show_default=True, help="Optimizer steps.")
def base(steps: int) -> None:
    """Train the base on other films, asked in the same way."""
    from loraline.base.encoding import Encoder

    folder = FOLDER / "base"
    ours = set(itertools.islice(moves(1), sum(ROWS.values())))
    others = (move for move in moves(2) if move not in ours)
    records = [record(move) for move in itertools.islice(others, BASE_ROWS)]
    words = [QUESTION, *DIRECTIONS, *COMPASS.values(), *(f"<{n}.{n} seconds>" for n in range(10))]
    tokenizer = tiny_bases.chat_tokenizer(words * 4)
    tokenizer.chat_template = showing_videos(tokenizer.chat_template)
    tiny_bases.build_vision("qwen3-vl", folder, tokenizer, vision_hidden=64)
    give_place_and_size(folder)
    encoder = Encoder(folder, "vision", min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
    rows = [encoder.encode(row) for row in records]
    tiny_bases.train(folder, "vision", encoder, rows, steps=steps, keep=True)


def showing_videos(template: str) -> str:
    """A chat template of images that has a place for videos too."""
    text = "{% else %}{{ part.text }}"
    return template.replace(text, PLACE + text)


def give_place_and_size(folder: Path) -> None:
    """Let a base's processor show videos, and leave frames at the size that they have."""
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    pixels = FRAMES * SIDE * SIDE
    settings["video_processor"] |= {
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "image_mean": [1.0] * 3,
        "image_std": [0.3] * 3,
    }
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    template = folder / "chat_template.jinja"
    template.write_text(showing_videos(template.read_text()))


def record(move: Move) -> Record:
    """A film as a training row of the base, with the plain word for its direction."""
    video = Video(tuple(move.frames()), FPS)
    return Record((("user", VIDEO + QUESTION), ("assistant", move.direction)), videos=(video,))


def moves(seed: int) -> Iterator[Move]:
    """Distinct moves that stay within the frame, endless."""
    pick = random.Random(seed)
    room, way = SIDE - SHAPE, PACE * (FRAMES - 1)
    seen = set()
    while True:
        direction = pick.choice(list(DIRECTIONS))
        across, down = DIRECTIONS[direction]
        left = pick.randint(way if across < 0 else 0, room - way if across > 0 else room)
        top = pick.randint(way if down < 0 else 0, room - way if down > 0 else room)
        move = Move(pick.choice(list(COLOURS)), pick.choice(FORMS), left, top, direction)
        if move not in seen:
            seen.add(move)
            yield move


def draw(colour: str, form: str, left: int, top: int) -> bytes:
    """A PNG of a shape on white."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(page)
    right, bottom = left + SHAPE - 1, top + SHAPE - 1
    if form == "circle":
        pen.ellipse((left, top, right, bottom), fill=COLOURS[colour])
    elif form == "square":
        pen.rectangle((left, top, right, bottom), fill=COLOURS[colour])
    else:
        pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], COLOURS[colour])
    png = io.BytesIO()
    page.save(png, "PNG")
    return png.getvalue()


def film(frames: list[bytes]) -> bytes:
    """A GIF of frames, each for a part of a second."""
    from PIL import Image

    # Colours of its own: a palette of all films would be dithered.
    pictures = (Image.open(io.BytesIO(frame)) for frame in frames)
    first, *others = (picture.quantize(8, dither=Image.Dither.NONE) for picture in pictures)
    gif = io.BytesIO()
    # Frames of their own: one that shows no change would else be left out.
    first.save(
        gif,
        "GIF",
        save_all=True,
        append_images=others,
        duration=round(1000 / FPS),
        disposal=2,
        optimize=False,
    )
    return gif.getvalue()


if __name__ == "__main__":
    make_moves()
