"""Speed and peak memory of prepare_data, beside datasets' map and LLaMA-Factory.

All read the same files in one run: a JSONL file of questions and answers, and a folder of JPEGs of
448 x 448 pixels with their metadata file. Ours is the whole step: reading, every check, token
lengths, signatures, merge, shards, report, MLflow. datasets and LLaMA-Factory do a part of that, as
the printed table says. Memory is the proportional set size of the process and its children.

    python bench/prepare_data.py --rows 1000000 --images 20000
    python bench/prepare_data.py --rows 100000 --images 2000 --llamafactory other/venv/bin/python
    python bench/prepare_data.py --rows 300000 --images 4000 --baseline HEAD~20

`--baseline` measures an older commit beside the tree as it is: both read the same files in turn, in
several rounds, in one Python environment. Exit code 1 says that a median is more than 5% above the
baseline's.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import click

ROOT = Path(__file__).parents[1]
SIDE = 448
WORKERS = 2
SLOWER = 1.05
"""Seconds, or bytes of memory, to the baseline's: more is a failure."""

PAGES = [ROOT / "LICENSE", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MAP_TEXT = """
import sys, datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
def encode(row):
    turns = [("user", row["question"]), ("assistant", row["answer"])]
    turns = [{"role": role, "content": text} for role, text in turns]
    return {"input_ids": tokenizer.apply_chat_template(turns, return_dict=False)}
rows = datasets.load_dataset("json", data_files=sys.argv[1] + "/data.jsonl", split="train")
print(len(rows.map(encode, num_proc=2)))
"""

MAP_IMAGES = """
import sys, datasets
datasets.disable_progress_bars()
def decode(row):
    row["image"].load()
    return {"pixels": row["image"].width * row["image"].height}
rows = datasets.load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
print(len(rows.map(decode, num_proc=2)))
"""

FACTORY = """
import importlib.util, sys, types
from types import SimpleNamespace
import datasets
# The converter alone: the package imports trainers, which pin other versions of transformers.
(root,) = importlib.util.find_spec("llamafactory").submodule_search_locations
for name in ("", ".data", ".extras"):
    package = types.ModuleType("llamafactory" + name)
    package.__path__ = [root + name.replace(".", "/")]
    sys.modules[package.__name__] = package
from llamafactory.data.converter import get_dataset_converter
datasets.disable_progress_bars()
columns = dict(prompt="question", query=None, response="answer", history=None, system=None,
               tools=None, images=None, videos=None, audios=None, ranking=False, kto_tag=None,
               load_from="file", formatting="alpaca")
kind, folder = sys.argv[2], sys.argv[1]
if kind == "images":
    columns |= dict(prompt="prompt", response="text", images="images")
    rows = datasets.load_dataset("json", data_files=folder + "/../factory.jsonl", split="train")
else:
    rows = datasets.load_dataset("json", data_files=folder + "/data.jsonl", split="train")
settings = SimpleNamespace(media_dir=folder, image_dir=folder)
convert = get_dataset_converter("alpaca", SimpleNamespace(**columns), settings)
print(len(rows.map(convert, remove_columns=rows.column_names, num_proc=2)))
"""


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Text rows.")
@click.option("--images", default=20_000, show_default=True, help="Rows with one image.")
@click.option("--llamafactory", help="Python of an environment that has LLaMA-Factory.")
@click.option("--only", default="", help="A word of the names to run, such as loraline.")
@click.option("--files", type=click.Path(path_type=Path), help="Where the files are made and kept.")
@click.option("--baseline", help="A commit to compare with, in place of the peers.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each of the two is measured with --baseline.",
)
def prepare_data(
    rows: int,
    images: int,
    llamafactory: str | None,
    only: str,
    files: Path | None,
    baseline: str | None,
    rounds: int,
) -> None:
    """Measure prepare_data beside its peers, or beside an older commit, and print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        place = (files or Path(scratch)).resolve()
        text, pictures = place / "text", place / "images"
        if not (place / "lora_profiles").is_dir():
            place.mkdir(exist_ok=True)
            make_text(text, rows)
            make_images(pictures, images)
            make_base(place / "base")
            lay_out(place, ROOT)
        runs = {
            "loraline, text": (rows, step(ROOT, "text", text)),
            "datasets map (tokens only), text": (
                rows,
                [sys.executable, "-c", MAP_TEXT, str(text), str(place / "base")],
            ),
            "loraline, images": (images, step(ROOT, "vision", pictures)),
            "datasets map (decode only), images": (
                images,
                [sys.executable, "-c", MAP_IMAGES, str(pictures)],
            ),
        }
        if rows:
            print(f"{tokens(text, place / 'base'):.0f} tokens a text row, without the template\n")
        if llamafactory:
            for modality, folder, count in (("text", text, rows), ("images", pictures, images)):
                command = [llamafactory, "-c", FACTORY, str(folder), modality]
                runs[f"LLaMA-Factory converter (no media, no tokens), {modality}"] = (
                    count,
                    command,
                )
        print("| | rows | seconds | CPU seconds | rows/s | peak GiB |\n|---|---|---|---|---|---|")
        if baseline:
            with older(baseline, Path(scratch)) as tree:
                compare(place, tree, baseline, {"text": rows, "images": images}, rounds, only)
            return
        for name, (count, command) in runs.items():
            if count and only in name:
                measured = measure(command, place, scratch)
                print(line(name, count, *measured), flush=True)


def step(tree: Path, profile: str, data: Path) -> list[str]:
    """The command of the step of a tree."""
    options = ["--force", "--workers", str(WORKERS), "--profile", profile, "--data", str(data)]
    return [sys.executable, str(tree / "steps/prepare_data.py"), *options]


def line(name: str, rows: int, seconds: float, cpu: float, peak: float) -> str:
    """A line of the table; `peak` is in bytes."""
    numbers = f"{seconds:.1f} | {cpu:.1f} | {rows / seconds:,.0f} | {peak / 2**30:.2f}"
    return f"| {name} | {rows:,} | {numbers} |"


@contextmanager
def older(commit: str, scratch: Path) -> Iterator[Path]:
    """The tree of an older commit in a temporary folder."""
    tree = scratch / "baseline"
    worktree = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run(
        [*worktree, "add", "--detach", str(tree), commit], capture_output=True, text=True
    )
    if added.returncode:
        raise click.ClickException(f"--baseline {commit}: {added.stderr.strip()[-300:]}")
    try:
        yield tree
    finally:
        subprocess.run([*worktree, "remove", "--force", str(tree)], check=True)


def compare(
    place: Path, tree: Path, commit: str, rows: dict[str, int], rounds: int, only: str
) -> None:
    """Measure an older tree and this one in turn, and print the medians beside each other.

    Exits with 1 where a median of this tree is more than SLOWER times that of the older one.
    """
    places = {commit: (place / "of-baseline", tree), "now": (place, ROOT)}
    if not places[commit][0].is_dir():
        places[commit][0].mkdir()
        (places[commit][0] / "base").symlink_to(place / "base")
        lay_out(*places[commit])
    above = []
    for data, profile in (("text", "text"), ("images", "vision")):
        if not rows[data] or only not in data:
            continue
        measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in places}
        # The first run of each warms the disk's cache and counts for nothing.
        for number in range(rounds + 1):
            for name, (folder, code) in places.items():
                result = measure(step(code, profile, place / data), folder, str(folder), code)
                if number:
                    measured[name].append(result)
        before, now = (
            [median(values) for values in zip(*measured[n], strict=True)] for n in places
        )
        print(line(f"{commit}, {data}", rows[data], *before))
        print(line(f"now, {data}", rows[data], *now), flush=True)
        for unit, index in (("seconds", 0), ("CPU seconds", 1), ("peak memory", 2)):
            share = now[index] / before[index]
            print(f"{data}: {unit} {share:.3f} of {commit}'s", file=sys.stderr)
            if share > SLOWER and unit != "CPU seconds":
                above.append(f"{data}: {unit} {share - 1:.1%} above {commit}'s")
    if above:
        raise click.ClickException("; ".join(above))


def make_text(folder: Path, rows: int) -> None:
    """Questions and answers as long as Alpaca's, from the words of our own pages.

    One word in a hundred is a number, so that words which nobody saw before are as frequent as in
    other texts.
    """
    folder.mkdir()
    rng = random.Random(0)
    draw = rng.random
    words = re.findall(r"[A-Za-z]+[,.]?", " ".join(page.read_text() for page in PAGES))
    after = defaultdict(lambda: words)
    for word, following in pairwise(words):
        after[word] = [*(after.get(word) or []), following]

    def say(length: int) -> str:
        words, word = [], ""
        for _ in range(length):
            drawn = draw()
            if drawn > 0.99:
                words.append(str(int(draw() * 10**6)))
                continue
            others = after[word] if drawn < 0.8 else words
            word = others[int(draw() * len(others))]
            words.append(word)
        return " ".join(words)

    with (folder / "data.jsonl").open("w") as file:
        for _ in range(rows):
            row = {"question": say(rng.randint(6, 20)) + "?", "answer": say(rng.randint(16, 64))}
            file.write(json.dumps(row) + "\n")


def tokens(folder: Path, base: Path) -> float:
    """Mean tokens of the first thousand rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    with (folder / "data.jsonl").open() as file:
        rows = [" ".join(json.loads(line).values()) for line in islice(file, 1000)]
    return sum(len(tokens) for tokens in tokenizer.encode_batch(rows)) / len(rows)


def make_images(folder: Path, images: int) -> None:
    (folder / "images").mkdir(parents=True)
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(make_image, [folder] * images, range(images), chunksize=256))
    with (
        (folder / "metadata.jsonl").open("w") as file,
        (folder.parent / "factory.jsonl").open("w") as other,
    ):
        for number in range(images):
            name, text = f"images/{number:06d}.jpg", f"picture number {number}"
            file.write(json.dumps({"file_name": name, "text": text}) + "\n")
            row = {"images": [name], "prompt": "<image>What is it?", "text": text}
            other.write(json.dumps(row) + "\n")
    (folder / "prompt.txt").write_text("What is it?")


def make_image(folder: Path, number: int) -> None:
    """A picture with as much detail as a photo: 60 KB as JPEG."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((SIDE, SIDE))
    noise = rng.integers(-14, 15, (SIDE, SIDE, 1), np.int16)
    pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{number:06d}.jpg", quality=85)


def make_base(folder: Path) -> None:
    """The tiny text base with a vocabulary of its own, so that a word is about one token.

    The tokenizer of the test data knows few words, and would make three times the tokens that
    Mistral's or Qwen's make of English.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    shutil.copytree(ROOT / "test_data/text/base", folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((page.read_text() for page in PAGES), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


CONNECT = """
try:
    from loraline.tracking import store
except ImportError:
    from loraline import tracking as store
store.connect()
"""
"""Makes MLflow's store; the module has moved since the oldest baseline."""


def lay_out(place: Path, tree: Path) -> None:
    """Profiles with limits that no row meets, the bases, and MLflow's store, for a tree's step."""
    import yaml

    (place / "lora_profiles").mkdir()
    (place / "test_data").symlink_to(tree / "test_data")
    for modality in ("text", "vision"):
        profile = yaml.safe_load((tree / f"lora_profiles/smoke-{modality}.yaml").read_text())
        profile |= {"max_length": 4096, "max_new_tokens": 1024}
        if modality == "text":
            profile |= {"base": "base"}
        if modality == "vision":
            profile |= {"min_pixels": 3136, "max_pixels": 1003520}
        (place / f"lora_profiles/{modality}.yaml").write_text(yaml.safe_dump(profile))
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", CONNECT]
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)


def measure(
    command: list[str], place: Path, cache: str, tree: Path = ROOT
) -> tuple[float, float, int]:
    """Seconds, CPU seconds, and the most memory in bytes, of a process and its children.

    `cache` is where datasets keeps what it made, and finds it again; `tree` holds the package.
    """
    import psutil

    started, peak, used = time.monotonic(), 0, dict[int, float]()
    process = psutil.Popen(
        command,
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_DATASETS_CACHE": cache, "PYTHONPATH": str(tree)},
    )
    while process.poll() is None:
        memory = 0
        for member in [process, *process.children(recursive=True)]:
            try:
                memory += member.memory_full_info().pss
                times = member.cpu_times()
                used[member.pid] = times.user + times.system
            except psutil.Error:
                continue
        peak = max(peak, memory)
        # To look is work too, on the cores that are measured.
        with suppress(psutil.TimeoutExpired):
            process.wait(0.5)
    seconds = time.monotonic() - started
    if process.returncode:
        raise click.ClickException(process.stderr.read().decode()[-2000:])
    return seconds, sum(used.values()), peak


if __name__ == "__main__":
    prepare_data()
