"""Held-out rows that the evaluation answered right: what to ask a server first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LIST = "examples.jsonl"
"""A line for each example: `text` and `files`, as the page's first screen offers them."""

MOST = 8

LONGEST = 300
"""Characters of a question or an answer that is shown in a line."""


SEVERAL_TURNS = re.compile(r"\[(?:system|user|assistant|tool)\] ")
"""How a question of several turns begins in the predictions table."""


class Example(NamedTuple):
    """A question, the image that it is about, and the answer that was right."""

    question: str
    image: bytes | None
    answer: str


def of_version(uri: str, prompt: str) -> list[Example]:
    """Examples of a registered version, `models:/name/version`, asked with this prompt.

    None at all where no answer was right, or where the version's evaluation is not to be had here:
    a server runs without it.
    """
    from mlflow.exceptions import MlflowException

    from loraline.errors import TryAgain, UserError
    from loraline.tracking import registry, runs, store

    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    try:
        client = store.connect()
        registered = client.get_model_version(name, version)
        gate_run = client.get_run(registry.promoting_gate_run_of(client, registered))
        return of_evaluation(client, runs.ancestor(client, gate_run, "evaluate"), prompt)
    except (UserError, TryAgain, MlflowException, OSError):
        return []
    # What somebody has left in its place is no evaluation.
    except (LookupError, TypeError, ValueError, AttributeError):
        return []


def of_evaluation(client: MlflowClient, eval_run: Run, prompt: str) -> list[Example]:
    """The shortest questions that the evaluation's adapter answered right, the shortest first."""
    import mlflow

    from loraline import records
    from loraline.tracking import runs

    table = mlflow.artifacts.load_dict(f"runs:/{eval_run.info.run_id}/predictions.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    right_rows = [row for row in rows if is_right(row, prompt)]
    right_rows = sorted(right_rows, key=lambda row: len(row["question"]))[:MOST]
    held_out: list[records.Record] = []
    if any(records.IMAGE in row["question"] for row in right_rows):
        data_run = runs.ancestor(client, eval_run, "prepare_data")
        with runs.dataset(client, data_run, "test") as dataset:
            held_out = records.read(dataset / "test.parquet")
    return [
        Example(
            question_in(row["question"], prompt),
            held_out[int(row["row"])].images[0] if records.IMAGE in row["question"] else None,
            row["reference"].strip(),
        )
        for row in right_rows
    ]


def write(examples: Sequence[Example], folder: Path) -> None:
    """Write examples with their images, in the place of an earlier server's."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for at, each in enumerate(examples):
        files = [] if each.image is None else [file_of(each.image, folder, str(at)).name]
        lines.append(json.dumps({"text": each.question, "files": files}) + "\n")
    (folder / LIST).write_text("".join(lines), encoding="utf-8")


def file_of(image: bytes, folder: Path, stem: str) -> Path:
    """An image as a file, whose name says its type."""
    ending = "jpg" if image.startswith(b"\xff\xd8") else "png"
    file = folder / f"{stem}.{ending}"
    file.write_bytes(image)
    return file


def is_right(row: dict[str, Any], prompt: str) -> bool:
    """Whether a row is one question with this prompt, and its answer was the reference.

    An example brings one image at most, and no video. Of a row with several turns the table has
    each with its role before it, which no request has.
    """
    from loraline.records import IMAGE, TAGS

    if SEVERAL_TURNS.match(row["question"]):
        return False

    text, answer = row["question"].removeprefix(IMAGE), row["reference"].strip()
    before, _, after = prompt.partition("{question}")
    single = text.startswith(before) and text.endswith(after) and not TAGS.search(text)
    short = 0 < len(answer) <= LONGEST and len(text) <= LONGEST + len(prompt)
    return single and short and "\n" not in answer and bool(row["tuned"].strip() == answer)


def question_in(text: str, prompt: str) -> str:
    """The question in a text that was made of it with the prompt; empty where it has no place."""
    from loraline.records import IMAGE

    if "{question}" not in prompt:
        return ""
    before, _, after = prompt.partition("{question}")
    return text.removeprefix(IMAGE).removeprefix(before).removesuffix(after)
