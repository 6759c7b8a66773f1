"""A held-out row that the evaluation answered right: what to ask a server first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LONGEST = 300
"""Characters of a question or an answer that is shown in a line."""


class Example(NamedTuple):
    """A question, the image that it is about, and the answer that was right."""

    question: str
    image: bytes | None
    answer: str


def of_version(uri: str, prompt: str) -> Example | None:
    """An example of a registered version, `models:/name/version`, asked with this prompt.

    None where no answer was right, or where the version's evaluation is not to be had here: a
    server runs without it.
    """
    from mlflow.exceptions import MlflowException

    from loraline.errors import TryAgain, UserError
    from loraline.tracking import registry, runs, store

    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    try:
        client = store.connect()
        made = client.get_model_version(name, version)
        gate_run = client.get_run(registry.promoting_gate_run_of(client, made))
        return of_evaluation(client, runs.ancestor(client, gate_run, "evaluate"), prompt)
    except (UserError, TryAgain, MlflowException, OSError):
        return None


def of_evaluation(client: MlflowClient, eval_run: Run, prompt: str) -> Example | None:
    """The shortest question that the evaluation's adapter answered right."""
    import mlflow

    from loraline import records
    from loraline.tracking import runs

    table = mlflow.artifacts.load_dict(f"runs:/{eval_run.info.run_id}/predictions.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    right = [row for row in rows if is_right(row, prompt)]
    if not right:
        return None
    row = min(right, key=lambda row: len(row["question"]))
    question, answer = asked(row["question"], prompt), row["reference"].strip()
    if records.IMAGE not in row["question"]:
        return Example(question, None, answer)
    data_run = runs.ancestor(client, eval_run, "prepare_data")
    with runs.dataset(client, data_run, "test") as dataset:
        held_out = records.read(dataset / "test.parquet")
    return Example(question, held_out[int(row["row"])].images[0], answer)


def is_right(row: dict[str, Any], prompt: str) -> bool:
    """Whether a row is one question with this prompt, and its answer was the reference."""
    from loraline.records import IMAGE

    text, answer = row["question"].removeprefix(IMAGE), row["reference"].strip()
    before, _, after = prompt.partition("{question}")
    single = text.startswith(before) and text.endswith(after) and IMAGE not in text
    short = 0 < len(answer) <= LONGEST and len(text) <= LONGEST + len(prompt)
    return single and short and "\n" not in answer and bool(row["tuned"].strip() == answer)


def asked(text: str, prompt: str) -> str:
    """The question in a text that was made of it with the prompt; empty where it has no place."""
    from loraline.records import IMAGE

    if "{question}" not in prompt:
        return ""
    before, _, after = prompt.partition("{question}")
    return text.removeprefix(IMAGE).removeprefix(before).removesuffix(after)
