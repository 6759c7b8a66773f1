import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import mlflow
import psutil
import pytest
from made_data import picture

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
    # The repeated row is dropped.
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


ASKED = [
    {"ask": f"what is {n}?", "reply": f"it is {n}", "page": n // 3, "rating": 5} for n in range(60)
]
PREPARE = {
    "sources": ["data", {"uri": "more", "split": "train", "columns": {}}],
    "columns": {"question": "ask", "answer": "reply"},
    "ignore": ["rating"],
    "checks": {"near_duplicates": "keep", "duplicates": "keep"},
    "limits": {"row_bytes": 4096, "fps": 1},
    "group_by": "page",
    "prompt": "asked.txt",
}


@pytest.fixture
def prepared_by_profile(quick, workplace: Path) -> str:
    """A profile whose block `prepare` says all that its two folders need."""
    write_rows(workplace / "data", list(ASKED))
    write_rows(workplace / "more", [{"question": "who?", "answer": "nobody", "page": 1}])
    (workplace / "asked.txt").write_text("Say: {question}")
    return str(quick("mine", data=None, prepare=PREPARE))


def test_a_profile_says_all_that_the_command_line_can(
    step, prepared_by_profile: str, workplace: Path
) -> None:
    result = step("prepare_data", "--profile", prepared_by_profile)

    assert result.exit_code == 0, result.output
    run_id = logged(workplace)
    manifest = mlflow.artifacts.load_dict(f"runs:/{run_id}/dataset/manifest.json")
    assert [source["uri"] for source in manifest["sources"]] == ["data", "more"]
    assert [source["split"] for source in manifest["sources"]] == [None, "train"]
    assert manifest["settings"]["group_by"] == "page"
    assert manifest["settings"]["actions"]["duplicates"] == "keep"
    assert manifest["settings"]["limits"]["row_bytes"] == 4096
    assert manifest["prompt"]["template"] == "Say: {question}"
    splits = logged_splits(run_id, workplace)
    pages = {
        split: {int(row.answer.split()[-1]) // 3 for row in rows if row.answer != "nobody"}
        for split, rows in splits.items()
    }
    assert not pages["train"] & pages["test"]
    assert "nobody" in {row.answer for row in splits["train"]}


def test_a_flag_counts_instead_of_what_the_profile_says(
    step, prepared_by_profile: str, workplace: Path
) -> None:
    flags = ("--data", "data", "--group-by", "row", "--on", "duplicates=drop", "--limit", "fps=3")

    result = step("prepare_data", "--profile", prepared_by_profile, *flags)

    assert result.exit_code == 0, result.output
    manifest = mlflow.artifacts.load_dict(f"runs:/{logged(workplace)}/dataset/manifest.json")
    assert [source["uri"] for source in manifest["sources"]] == ["data"]
    assert manifest["settings"]["group_by"] == "row"
    assert manifest["settings"]["actions"]["duplicates"] == "drop"
    assert manifest["settings"]["limits"]["fps"] == 3
    assert manifest["settings"]["limits"]["row_bytes"] == 4096


def test_another_choice_of_the_profile_is_another_dataset(
    step, prepared_by_profile: str, workplace: Path
) -> None:
    first = step("prepare_data", "--profile", prepared_by_profile)
    again = step("prepare_data", "--profile", prepared_by_profile)
    changed = step(
        "prepare_data", "--profile", prepared_by_profile, "--set", "prepare.limits.row_bytes=8192"
    )

    assert "(logged)" in first.output
    assert "(reused)" in again.output
    assert "(logged)" in changed.output


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prepare.checks={leak: drop}", "unknown check 'leak' in 'leak=drop'; accepted: "),
        ("prepare.checks={roles: keep}", "check roles cannot be set to 'keep'; accepted: "),
        ("prepare.limits={pixels: 4}", "unknown limit 'pixels' in 'pixels=4'; accepted: "),
        ("prepare.encoding=klingon", "encoding 'klingon' is unknown"),
        ("prepare.prompt=gone.txt", "--prompt 'gone.txt' cannot be read"),
        ("prepare.group_by=patient", "column 'patient' of --group-by is missing"),
    ],
)
def test_a_choice_of_the_profile_that_cannot_be_is_refused(
    step, prepared_by_profile: str, override: str, sentence: str
) -> None:
    result = step(
        "prepare_data", "--profile", prepared_by_profile, "--set", override.replace(" ", "\\ ")
    )

    assert result.exit_code == 2
    assert sentence in result.stderr


MISSPELT = {"question": "aks", "answer": "reply"}


@pytest.mark.parametrize("said_in", ["profile", "source", "set", "registry"])
def test_a_misspelt_column_is_named_with_the_place_of_its_name(
    step, quick, workplace: Path, said_in: str
) -> None:
    data = write_rows(workplace / "data", list(ASKED)) / "data.jsonl"
    spelt = {"question": "ask", "answer": "reply"}
    prepare = {
        "profile": {"columns": MISSPELT},
        "source": {"sources": [{"uri": str(data), "columns": MISSPELT}]},
    }
    mine = str(quick("mine", data=None, prepare=prepare.get(said_in, {"columns": spelt})))
    registry = {"set": {"uri": "data/data.jsonl", "columns": MISSPELT}}
    (workplace / "mine.yaml").write_text(json.dumps(registry))
    flags = (
        [] if said_in == "source" else ["--data", data if said_in != "registry" else "mine.yaml"]
    )
    if said_in == "set":
        flags += ["--set", "prepare.columns.question=aks"]

    result = step("prepare_data", "--profile", mine, *flags)

    place = {
        "profile": f"prepare.columns of profile {mine!r}",
        "source": f"prepare.sources of profile {mine!r}",
        "set": "prepare.columns of --set",
        "registry": "columns in mine.yaml",
    }[said_in]
    assert result.exit_code == 2
    assert "line 1: has no column 'aks', which " in result.stderr
    assert f" {place} names for question; it has ask, reply, page, rating; " in result.stderr
    assert "did you mean 'ask'?" in result.stderr


def test_the_same_data_is_logged_once_unless_forced(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", list(ROWS))
    arguments = ("prepare_data", "--profile", "smoke-text", "--data", data)
    run_ids = []
    for extra in ((), (), ("--force",)):
        step(*arguments, *extra)
        run_ids.append((workplace / "outputs" / "run-id").read_text())
    assert run_ids[0] == run_ids[1] != run_ids[2]


def test_unchanged_files_are_not_even_read(step, workplace: Path) -> None:
    first = step("prepare_data", "--profile", "smoke-vision")
    assert "(logged)" in first.stdout
    run_id = logged(workplace)
    again = step("prepare_data", "--profile", "smoke-vision")
    assert again.stdout.startswith("dataset ")
    assert again.stdout.endswith("of test_data/vision: nothing changed (reused)\n")
    assert logged(workplace) == run_id


def test_a_picture_that_changed_in_its_place_is_read_again(step, workplace: Path) -> None:
    data = workplace / "data"
    data.mkdir()
    for number in range(30):
        (data / f"{number}.png").write_bytes(picture(number))
    write_rows(
        data,
        [{"file_name": f"{number}.png", "text": str(number)} for number in range(30)],
        "metadata.jsonl",
    )
    (data / "prompt.txt").write_text("Read.")
    arguments = ("prepare_data", "--profile", "smoke-vision", "--data", data)
    assert step(*arguments).exit_code == 0
    before = logged(workplace)
    assert "nothing changed" in step(*arguments).stdout
    (data / "3.png").write_bytes(picture(99))
    assert "(logged)" in step(*arguments).stdout
    assert logged(workplace) != before
    assert "(logged)" in step(*arguments, "--on", "near_leaks=drop").stdout


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
    ("rows", "message"),
    [
        (['{"question": "a", "answer"'], "data.jsonl line 61 is not valid JSON: Expecting ':'"),
        ([{"question": "a"}], "line 61: expected strings question and answer, found question"),
        ([{"question": "a", "answer": [3, 4]}], "line 61: answer is a list"),
        ([["a", "b"]], "line 61: expected an object with named fields, found a list"),
        ([{"question": "a", "answer": "  "}], "line 61: answer is empty"),
        (
            [{"question": "a", "answer": "b", "context": "c"}],
            "line 61: 'context' would not be used",
        ),
    ],
)
def test_a_bad_line_ends_the_step_with_its_number(
    step, workplace: Path, rows: list[object], message: str
) -> None:
    data = write_rows(workplace / "data", [*ROWS, *rows])
    result = step("prepare_data", "--profile", "smoke-text", "--data", data)
    assert result.exit_code == 2
    *progress, refusal = result.stderr.strip().splitlines()
    assert message in refusal
    assert all(line.startswith("read: ") for line in progress)
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
    ("name", "content", "message"),
    [
        ("gone.png", None, "image 'gone.png' cannot be read: No such file"),
        (
            "text.png",
            b"not an image",
            "image 'text.png' cannot be decoded: it begins like no picture that is read; if it is "
            "one, convert it to PNG or JPEG",
        ),
        ("cut.png", "half", "image 'cut.png' cannot be decoded"),
        ("../x.png", None, "image '../x.png' lies outside of"),
        ("/etc/passwd", None, "image '/etc/passwd' lies outside of"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(
    step, workplace: Path, name: str, content: bytes | str | None, message: str
) -> None:
    data = vision_folder(workplace, name)
    if content == "half":
        whole = next((workplace / "test_data" / "vision" / "images").glob("*.png")).read_bytes()
        content = whole[: len(whole) // 2]
    if isinstance(content, bytes):
        (data / name).write_bytes(content)
    result = step("prepare_data", "--profile", "smoke-vision", "--data", data)
    assert result.exit_code == 2
    assert f"metadata.jsonl line 1: {message}" in result.stderr


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


def manifest_of(run_id: str) -> dict:
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/dataset/manifest.json")


def logged(workplace: Path) -> str:
    return (workplace / "outputs" / "run-id").read_text()


def test_the_manifest_tells_what_the_dataset_is(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", [*ROWS, ROWS[0], {"question": "a", "answer": " "}])
    (data / "prompt.txt").write_text("Say: {question}")
    arguments = ("--profile", "smoke-text", "--data", f"{data}#50", "--on", "empty=drop")
    result = step("prepare_data", *arguments)
    assert "; dropped: 1 empty, 11 sample, 1 duplicates (logged)" in result.stdout
    run = mlflow.get_run(logged(workplace))
    outcome = manifest_of(run.info.run_id)
    assert outcome["digest"] == run.data.params["digest"] == run.data.tags["loraline.fingerprint"]
    assert outcome["rows"] == {s: int(run.data.metrics[f"{s}_rows"]) for s in records.SPLITS}
    assert outcome["prompt"] == {
        "name": "tiny-mistral-lora-prompt",
        "version": 1,
        "template": "Say: {question}",
    }
    assert run.data.params["prompt_uri"] == "prompts:/tiny-mistral-lora-prompt/1"
    assert outcome["sources"][0]["sample"] == "#50"
    assert outcome["counts"]["empty drop"] == 1
    assert outcome["settings"]["actions"]["empty"] == "drop"
    for shard in outcome["shards"]:
        file = mlflow.artifacts.download_artifacts(
            f"runs:/{run.info.run_id}/dataset/{shard['file']}", dst_path=str(workplace / "d")
        )
        content = Path(file).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
    (input_,) = run.inputs.dataset_inputs
    assert input_.dataset.digest == outcome["version"]
    assert {tag.key: tag.value for tag in input_.tags}["sha256"] == outcome["digest"]


def test_the_same_rows_at_another_place_are_the_same_dataset(step, workplace: Path) -> None:
    run_ids = []
    for place in ("here", "there"):
        step(
            "prepare_data", "--profile", "smoke-text", "--data", write_rows(workplace / place, ROWS)
        )
        run_ids.append(logged(workplace))
    assert run_ids[0] == run_ids[1]


def test_the_report_is_logged_beside_the_dataset(step, workplace: Path) -> None:
    step("prepare_data", "--profile", "smoke-text")
    page = mlflow.artifacts.load_text(f"runs:/{logged(workplace)}/report/report.html")
    assert "432 rows read, 432 kept, 288 in train, 72 in validation, 72 in test" in page
    # Coloured as the loss sees it: the prompt's template is given, the answer and its end learnt.
    assert '<span class="given">&lt;s&gt;[INST] Answer in a few words. ' in page
    assert "&lt;/s&gt;</span></pre>" in page
    summary = mlflow.artifacts.load_text(f"runs:/{logged(workplace)}/report/report.md")
    assert "| train | 288 |" in summary


def test_the_report_shows_every_answer_of_a_conversation_as_learnt(step, workplace: Path) -> None:
    said = ["one?", "first", "two?", "second"]
    talks = [
        {
            "messages": [
                {"role": role, "content": f"{text} {n}"}
                for role, text in zip(("user", "assistant") * 2, said, strict=True)
            ]
        }
        for n in range(60)
    ]
    data = write_rows(workplace / "data", talks)
    step("prepare_data", "--profile", "smoke-text", "--data", data, "--check-only")
    page = (workplace / "outputs" / "report.html").read_text()
    assert re.search(
        r'<pre><span class="given">&lt;s&gt;\[INST\] one\? (\d+) \[/INST\]</span>'
        r'<span class="learnt"> ?first \1&lt;/s&gt;</span>'
        r'<span class="given"> ?\[INST\] two\? \1 \[/INST\]</span>'
        r'<span class="learnt"> ?second \1&lt;/s&gt;</span></pre>',
        page,
    )
    assert "Last answers are " in page


def test_check_only_writes_the_report_and_logs_nothing(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", list(ROWS))
    result = step("prepare_data", "--profile", "smoke-text", "--data", data, "--check-only")
    assert result.exit_code == 0, result.stderr
    assert (
        f"checked of {data}: 47 train, 6 validation, 7 test rows; report in outputs/report.html"
        in (result.stdout)
    )
    assert sorted(file.name for file in (workplace / "outputs").iterdir()) == [
        "report.html",
        "report.md",
    ]
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_check_only_ends_with_two_when_a_check_failed_and_reports_all(step, workplace) -> None:
    bad = [{"question": "a", "answer": ""}, {"question": "a"}, "{"]
    data = write_rows(workplace / "data", [*ROWS, *bad])
    result = step("prepare_data", "--profile", "smoke-text", "--data", data, "--check-only")
    assert result.exit_code == 2
    assert "data.jsonl line 61: answer is empty (check empty; all is in outputs/report.html, " in (
        result.stderr
    )
    assert "--on empty=drop leaves them out, with make SET=prepare.checks.empty=drop)" in (
        result.stderr
    )
    report = (workplace / "outputs" / "report.md").read_text()
    for check in ("empty", "format", "unreadable"):
        assert f"| {check} | fail | 1 |" in report


def test_a_report_without_a_kept_row_does_not_say_that_columns_are_used(
    step, workplace: Path
) -> None:
    data = write_rows(workplace / "data", [{"ask": "what?", "reply": "it"}])
    step("prepare_data", "--profile", "smoke-text", "--data", data, "--check-only")
    for name in ("report.html", "report.md"):
        report = (workplace / "outputs" / name).read_text()
        assert "1 rows read, 0 kept" in report
        assert "Every column is used" not in report
        assert "No row was kept, so no column is used." in report


def test_blank_lines_are_no_rows(step, workplace: Path) -> None:
    data = write_rows(workplace / "data", [row for one in ROWS for row in (one, "")])
    step("prepare_data", "--profile", "smoke-text", "--data", data, "--check-only")
    assert f"{len(ROWS)} rows read, {len(ROWS)} kept" in (
        (workplace / "outputs" / "report.md").read_text()
    )


def test_columns_that_are_not_used_are_said(step, workplace: Path) -> None:
    rows = [{**row, "mood": "calm", "id": n} for n, row in enumerate(ROWS)]
    data = write_rows(workplace / "data", rows)
    result = step("prepare_data", "--profile", "smoke-text", "--data", data)
    assert "warning: columns not used: mood (the report says in how many rows" in result.stderr
    again = step(
        "prepare_data", "--profile", "smoke-text", "--data", data, "--set", "prepare.ignore=[mood]"
    )
    assert "columns not used" not in again.stderr


def test_a_split_that_a_file_names_is_not_filled_with_other_rows(step, workplace: Path) -> None:
    write_rows(workplace / "data", ROWS, "train.jsonl")
    write_rows(workplace / "data", [{"question": "What?", "answer": "word " * 900}], "test.jsonl")
    result = step("prepare_data", "--profile", "smoke-text", "--data", workplace / "data")
    assert result.exit_code == 2
    assert "no rows for test of" in result.stderr
    assert "1 dropped by too_long" in result.stderr


def test_losing_most_of_the_data_is_said(step, workplace: Path) -> None:
    long = [{"question": f"{n}?", "answer": f"{n} word" * 900} for n in range(len(ROWS) + 1)]
    data = write_rows(workplace / "data", [*ROWS, *long])
    result = step("prepare_data", "--profile", "smoke-text", "--data", data)
    assert result.exit_code == 0
    assert f"warning: checks dropped {len(long)} of {len(ROWS) + len(long)} rows" in (result.stderr)


def test_examples_name_the_row_that_is_repeated(step, workplace: Path) -> None:
    for split, rows in (("train", [ROWS[0], *ROWS[:3], ROWS[9]]), ("test", ROWS[9:])):
        write_rows(workplace / "data", rows, f"{split}.jsonl")
    step("prepare_data", "--profile", "smoke-text", "--data", "data", "--check-only")
    report = (workplace / "outputs" / "report.md").read_text()
    assert "repeats an earlier row of its split: data/train.jsonl line 1 " in report
    assert "also stands in a later split, or its image does: data/test.jsonl line 1 " in report


@pytest.mark.parametrize(
    ("after", "copies"), [(0.2, 1500), pytest.param(3.0, 9000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("kill", "number", "code", "message"),
    [
        (os.killpg, signal.SIGINT, 130, "interrupted"),
        (os.kill, signal.SIGTERM, 75, "stopped by SIGTERM; start it again"),
    ],
)
def test_workers_that_are_interrupted_say_nothing(
    after: float,
    copies: int,
    kill: Callable[[int, int], None],
    number: int,
    code: int,
    message: str,
    workplace,
) -> None:
    """There are so many rows that a fast machine still reads them when it is interrupted."""
    rows = [{**row, "answer": str(row) * 9} for row in ROWS * copies]
    data = write_rows(workplace / "data", rows)
    script = Path(__file__).parents[2] / "steps/prepare_data.py"
    flags = ["--profile", "smoke-text", "--data", str(data), "--workers", "2", "--check-only"]
    started = subprocess.Popen(
        [sys.executable, script, *flags],
        cwd=workplace,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and with them their tests, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not psutil.Process(started.pid).children():
        assert started.poll() is None
        time.sleep(0.05)
    time.sleep(after)
    kill(started.pid, number)
    _, stderr = started.communicate(timeout=60)
    assert started.returncode == code
    assert stderr.strip().splitlines()[-1] == f"prepare-data: {message}"
    assert "Traceback" not in stderr


def test_check_only_needs_no_mlflow(step, workplace: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = step("prepare_data", "--profile", "smoke-text", "--check-only")
    assert result.exit_code == 0, result.stderr


def test_an_earlier_dataset_is_a_source_with_its_splits_and_prompt(step, workplace: Path) -> None:
    step("prepare_data", "--profile", "smoke-vision")
    first = logged(workplace)
    arguments = ("--profile", "smoke-vision", "--data", f"mlflow://{first}", "--force")
    assert step("prepare_data", *arguments).exit_code == 0
    second = logged(workplace)
    assert second != first
    assert logged_splits(second, workplace / "b") == logged_splits(first, workplace / "a")
    assert manifest_of(second)["prompt"] == manifest_of(first)["prompt"]


def test_shares_of_the_data_merge_to_the_dataset_of_one_run(
    step, workplace: Path, monkeypatch
) -> None:
    from loraline.data import workplace as data_workplace

    monkeypatch.setattr(data_workplace, "TEXT_PART", 500)
    data = write_rows(workplace / "data", [*ROWS, ROWS[3]])
    arguments = ("--profile", "smoke-text", "--data", data)
    runs = []
    for share in ("1/3", "2/3", "3/3"):
        assert step("prepare_data", *arguments, "--part", share).exit_code == 0
        runs.append(logged(workplace))
    merged = step("prepare_data", *arguments, "--merge", json.dumps(runs))
    assert merged.exit_code == 0, merged.stderr
    digest = mlflow.get_run(logged(workplace)).data.params["digest"]
    alone = step("prepare_data", *arguments)
    assert f"dataset {digest[:8]} of {data}: " in alone.stdout
    checked = step("prepare_data", *arguments, "--merge", ",".join(runs), "--check-only")
    assert (checked.exit_code, "report in outputs" in checked.stdout) == (0, True)
    both = step("prepare_data", *arguments, "--part", "1/3", "--check-only")
    assert (both.exit_code, "goes with neither" in both.stderr) == (2, True)
    nobodys = step("prepare_data", *arguments, "--merge", "nobody", "--check-only")
    assert (nobodys.exit_code, "--merge 'nobody' is not a run" in nobodys.stderr) == (2, True)
    assert "(reused)" in alone.stdout

    missing = step("prepare_data", *arguments, "--merge", ",".join(runs[:2]))
    assert (missing.exit_code, "parts are in none of the runs" in missing.stderr) == (2, True)
    other = step("prepare_data", *arguments, "--on", "empty=drop", "--merge", ",".join(runs))
    assert (other.exit_code, "prepared other data" in other.stderr) == (2, True)
    for share in ("4/3", "0/1", "half"):
        wrong = step("prepare_data", *arguments, "--part", share)
        assert (wrong.exit_code, "expected i/n" in wrong.stderr) == (2, True)


def test_a_share_is_no_dataset_to_train_on(step, workplace: Path) -> None:
    step("prepare_data", "--profile", "smoke-text", "--part", "1/1")
    arguments = ("--run-id", logged(workplace), "--profile", "smoke-text")
    result = step("train_qlora", *arguments)
    assert (result.exit_code, "is a run of prepare_data_part" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("profile", "name"), [("smoke-text", "custom"), ("smoke-vision", "custom_image")]
)
def test_the_test_split_is_a_benchmark_that_vllm_takes(
    profile: str, name: str, step, workplace: Path, monkeypatch
) -> None:
    from transformers import AutoTokenizer
    from vllm.benchmarks.datasets import datasets as benchmarks

    step("prepare_data", "--profile", profile)
    folder = mlflow.artifacts.download_artifacts(
        f"runs:/{logged(workplace)}/benchmark", dst_path=str(workplace)
    )
    monkeypatch.chdir(folder)
    kind = benchmarks.CustomImageDataset if "image" in name else benchmarks.CustomDataset
    base = "text" if profile == "smoke-text" else "vision"
    tokenizer = AutoTokenizer.from_pretrained(workplace / "test_data" / base / "base")
    requests = kind(dataset_path=f"{name}.jsonl", random_seed=0).sample(
        tokenizer, num_requests=5, output_len=-1, enable_multimodal_chat="image" in name
    )
    assert len(requests) == 5
    if name == "custom":
        assert all(request.expected_output_len > 1 for request in requests)
    else:
        sent = str(requests[0].multi_modal_data or requests[0].prompt)
        assert "data:image/" in sent


def test_labels_that_leave_little_to_train_on_are_a_warning(step, workplace: Path) -> None:
    labels = [{"question": f"What about {n}?", "answer": f"room {n % 8}"} for n in range(150)]
    data = write_rows(workplace / "data", list(labels))
    for more in ((), ("--check-only",)):
        result = step("prepare_data", "--profile", "smoke-text", "--data", data, *more)
        assert result.exit_code == 0
        assert "warning: of 150 rows, 38 go to validation instead of 15" in result.stderr
