import json
from pathlib import Path

import mlflow
import pytest

from loraline import records

ROWS = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(60)]


def write_rows(folder: Path, rows: list[object], name: str = "data.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def logged_splits(run_id: str, tmp_path: Path) -> dict[str, list[records.Record]]:
    folder = Path(
        mlflow.artifacts.download_artifacts(f"runs:/{run_id}/dataset", dst_path=str(tmp_path / "d"))
    )
    return {split: records.read(folder / f"{split}.parquet") for split in records.SPLITS}


def test_one_file_is_split_by_content_into_disjoint_parts(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", [*ROWS, ROWS[0]])
    assert step("prepare_data", "--profile", "smoke-text", "--data", data).exit_code == 0
    splits = logged_splits((workplace / "outputs" / "run-id").read_text(), workplace)
    answers = {split: {row.answer for row in rows} for split, rows in splits.items()}
    # The repeated row is counted out.
    assert sum(map(len, splits.values())) == 60
    assert not answers["train"] & answers["test"]
    assert not answers["train"] & answers["validation"]
    assert all(answers.values())


def test_files_named_after_splits_are_taken_as_they_are(step, workplace: Path) -> None:
    for index, split in enumerate(records.SPLITS):
        write_rows(workplace / "data", ROWS[index : index + 2], f"{split}.jsonl")
    (workplace / "data" / "prompt.txt").write_text("Say: {question}\n")
    step("prepare_data", "--profile", "smoke-text", "--data", workplace / "data")
    splits = logged_splits((workplace / "outputs" / "run-id").read_text(), workplace)
    assert splits["test"][0] == records.Record(
        (("user", "Say: what is 2?"), ("assistant", "it is 2"))
    )


def test_the_same_data_is_logged_once_unless_forced(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", list(ROWS))
    arguments = ("prepare_data", "--profile", "smoke-text", "--data", data)
    run_ids = []
    for extra in ((), (), ("--force",)):
        step(*arguments, *extra)
        run_ids.append((workplace / "outputs" / "run-id").read_text())
    assert run_ids[0] == run_ids[1] != run_ids[2]


def test_changed_rows_or_prompt_make_another_dataset(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", list(ROWS))
    versions = set()
    for change in ("", "rows", "prompt"):
        if change == "rows":
            write_rows(data, [*ROWS, {"question": "new", "answer": "row"}])
        if change == "prompt":
            (data / "prompt.txt").write_text("Q: {question}")
        step("prepare_data", "--profile", "smoke-text", "--data", data)
        run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
        versions.add(run.data.params["version"])
    assert len(versions) == 3


def test_an_empty_data_flag_means_the_profiles_own_data(step, workplace: Path) -> None:
    result = step("prepare_data", "--profile", "standard", "--data", "")
    assert result.exit_code == 2
    assert "profile 'standard' names no data; give a folder with --data" in result.stderr


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (['{"question": "a", "answer"'], "data.jsonl line 61 is not valid JSON: Expecting ':'"),
        ([{"question": "a"}], "line 61: expected strings question and answer, found question"),
        ([{"question": "a", "answer": 3}], "line 61: expected strings question and answer"),
        ([["a", "b"]], "line 61: expected an object with named fields, found list"),
        ([{"question": "a", "answer": "  "}], "line 61: answer is empty"),
        ([{"question": "a", "answer": "<image>"}], "line 61: <image> must not stand in"),
    ],
)
def test_a_bad_line_ends_the_step_with_its_number(
    step, workplace: Path, rows: list[object], told: str
) -> None:
    data = write_rows(workplace / "data", [*ROWS, *rows])
    result = step("prepare_data", "--profile", "smoke-text", "--data", data)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (workplace / "outputs").exists()
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_bytes_that_are_not_utf8_are_refused(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", list(ROWS))
    with (data / "data.jsonl").open("ab") as file:
        file.write(b'{"question": "\xff", "answer": "b"}\n')
    result = step("prepare_data", "--profile", "smoke-text", "--data", data)
    assert (result.exit_code, "line 61 is not UTF-8" in result.stderr) == (2, True)


def vision_folder(workplace: Path, name: str) -> Path:
    data = write_rows(workplace / "v", [{"file_name": name, "text": "x"}], "metadata.jsonl")
    (data / "prompt.txt").write_text("Write it as LaTeX.")
    return data


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.png", None, "image 'gone.png' cannot be read: No such file"),
        ("text.png", b"not an image", "image 'text.png' cannot be decoded"),
        ("cut.png", "half", "image 'cut.png' cannot be decoded"),
        ("../x.png", None, "image '../x.png' lies outside of"),
        ("/etc/passwd", None, "image '/etc/passwd' lies outside of"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(
    step, workplace: Path, name: str, content: bytes | str | None, told: str
) -> None:
    data = vision_folder(workplace, name)
    if content == "half":
        whole = next((workplace / "test_data" / "vision" / "images").glob("*.png")).read_bytes()
        content = whole[: len(whole) // 2]
    if isinstance(content, bytes):
        (data / name).write_bytes(content)
    result = step("prepare_data", "--profile", "smoke-vision", "--data", data)
    assert result.exit_code == 2
    assert f"metadata.jsonl line 1: {told}" in result.stderr


def test_vision_data_needs_a_prompt(step, workplace: Path) -> None:
    data = write_rows(workplace / "v", [{"file_name": "a.png", "text": "x"}])
    result = step("prepare_data", "--profile", "smoke-vision", "--data", data)
    assert (result.exit_code, "prompt.txt is missing" in result.stderr) == (2, True)


def test_a_missing_or_empty_folder_is_refused(step, workplace: Path) -> None:
    missing = step("prepare_data", "--profile", "smoke-text", "--data", "nowhere")
    assert (missing.exit_code, "'nowhere' is not a folder" in missing.stderr) == (2, True)
    (workplace / "empty").mkdir()
    empty = step("prepare_data", "--profile", "smoke-text", "--data", "empty")
    assert (empty.exit_code, "empty holds no .jsonl file" in empty.stderr) == (2, True)


def test_an_unknown_profile_is_refused(step, workplace: Path) -> None:
    result = step("prepare_data", "--profile", "standrad")
    assert (result.exit_code, "accepted: aggressive, debug" in result.stderr) == (2, True)
