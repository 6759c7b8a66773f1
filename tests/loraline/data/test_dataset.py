"""The same data make the same dataset, however they are read; splits share nothing."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import kept, picture, profile, sixteen_bits, write_lines

from loraline import records
from loraline.data import checks, dataset, outcome, parts, sentences, shards, workplace
from loraline.data.merged import Dataset
from loraline.data.reading import media
from loraline.errors import TryAgain, UserError

ROWS = [
    {"question": f"What is {n}?", "answer": f"it is {n % 60}", "page": n // 5} for n in range(90)
]

words = st.text("abc ", min_size=1, max_size=6).filter(str.strip)
row_lists = st.lists(
    st.fixed_dictionaries({"question": words, "answer": words}), min_size=1, max_size=40
)
quick = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(row_lists, st.integers(20, 200))
def test_cutting_the_data_elsewhere_changes_nothing(tmp_path, prepare, rows, size: int) -> None:
    data = write_lines(tmp_path / "data.jsonl", rows)
    whole, cut = prepare(data), prepare(data, size=size)
    assert dataset.digest(whole) == dataset.digest(cut)
    assert kept(whole) == kept(cut)
    assert whole.counts == cut.counts
    # Examples of a check come in the order of the rows, with the same line numbers.
    assert [e["place"] for e in whole.examples] == [e["place"] for e in cut.examples]


def test_any_number_of_workers_makes_the_same_dataset(tmp_path, prepare) -> None:
    rows = [*ROWS, '{"question": "cut', {"question": "no answer", "answer": ""}, *ROWS[:9]]
    data = write_lines(tmp_path / "data.jsonl", rows)
    on = ("unreadable=drop", "empty=drop")
    one, three = prepare(data, on=on), prepare(data, on=on, size=500, workers=3)
    assert len(three.work.parts) > 5
    assert dataset.digest(one) == dataset.digest(three)
    assert (one.counts, one.examples) == (three.counts, three.examples)


def test_a_pool_that_is_given_up_leaves_no_thread(tmp_path, prepare) -> None:
    rows = [{"question": "no answer", "answer": ""}, *ROWS * 30]
    data = write_lines(tmp_path / "data.jsonl", rows)
    before = set(threading.enumerate())
    with pytest.raises(UserError, match="answer is empty"):
        prepare(data, size=500, workers=2, stop=True)
    assert set(threading.enumerate()) == before


@quick
@given(row_lists)
def test_no_answer_stands_in_two_splits(tmp_path, prepare, rows) -> None:
    merged = prepare(write_lines(tmp_path / "data.jsonl", rows))
    where: dict[str, set[int]] = {}
    for index in (merged.copies > 0).nonzero()[0].tolist():
        where.setdefault(merged.record(index).answer, set()).add(int(merged.split[index]))
    assert all(len(splits) == 1 for splits in where.values())


@quick
@given(row_lists, row_lists)
def test_a_row_stays_in_its_split_when_others_are_added(tmp_path, prepare, rows, more) -> None:
    def splits(merged) -> dict[str, int]:
        return {merged.record(i).answer: int(merged.split[i]) for i in range(len(merged.split))}

    before = splits(prepare(write_lines(tmp_path / "data.jsonl", rows)))
    after = splits(prepare(write_lines(tmp_path / "data.jsonl", [*rows, *more])))
    assert before.items() <= after.items()


def test_a_column_keeps_its_rows_together(tmp_path, prepare) -> None:
    merged = prepare(write_lines(tmp_path / "data.jsonl", ROWS), group_by="page")
    assert all(merged.rows.values())
    for page in range(18):
        assert len(set(merged.split[page * 5 : page * 5 + 5].tolist())) == 1


def test_rows_split_each_by_itself_when_asked(tmp_path, prepare) -> None:
    rows = [{"question": f"is it {n}?", "answer": "yes"} for n in range(60)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(UserError, match="no rows for"):
        dataset.refuse_empty(prepare(data))
    assert all(prepare(data, group_by="row").rows.values())


def test_a_missing_column_to_group_by_is_said(tmp_path, prepare) -> None:
    merged = prepare(write_lines(tmp_path / "data.jsonl", ROWS[:2]), group_by="patient")
    with pytest.raises(UserError, match="column 'patient' of --group-by is missing"):
        dataset.refuse(merged.examples)


def test_a_group_is_the_same_however_a_file_writes_it(tmp_path, prepare) -> None:
    rows = [
        {"question": f"What is {n}?", "answer": f"it is {n}", "page": n // 9} for n in range(90)
    ]
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist([{**row, "page": float(row["page"])} for row in rows[::3]])
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    write_lines(tmp_path / "data" / "b.jsonl", rows[1::3])
    lines = (f"{row['question']},{row['answer']}, {row['page']}\n" for row in rows[2::3])
    (tmp_path / "data" / "c.csv").write_text("question,answer,page\n" + "".join(lines))
    merged = prepare(tmp_path / "data", group_by="page")
    assert len(set(merged.facts["group"].tolist())) == 10


@pytest.mark.parametrize("page", [None, "", float("nan")])
def test_a_row_of_no_group_is_refused(tmp_path, prepare, page: object) -> None:
    data = write_lines(tmp_path / "data.jsonl", [{**ROWS[0], "page": page}])
    (example,) = prepare(data, group_by="page").examples
    assert "column 'page' of --group-by is missing or empty" in example["clause"]


def test_rows_that_show_the_same_image_stay_together(tmp_path, prepare) -> None:
    rows = []
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        rows += [
            {"image": f"{number}.png", "question": f"q{i}", "answer": f"a{number} {i}"}
            for i in range(5)
        ]
    merged = prepare(write_lines(tmp_path / "data.jsonl", rows), modality="vision", group_by="row")
    assert len(set(merged.split.tolist())) > 1
    for number in range(12):
        assert len(set(merged.split[number * 5 : number * 5 + 5].tolist())) == 1
    assert "leaks drop" not in merged.counts


def test_splits_that_no_file_names_are_taken_from_train(tmp_path, prepare) -> None:
    write_lines(tmp_path / "data" / "train.jsonl", ROWS)
    write_lines(tmp_path / "data" / "test.jsonl", [{"question": "held", "answer": "out"}])
    merged = prepare(tmp_path / "data")
    assert merged.rows["test"] == 1
    assert 0 < merged.rows["validation"] < 30
    assert sum(merged.rows.values()) == 91


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_that_one_source_names_has_no_rows_of_another(tmp_path, prepare, split) -> None:
    exam = [{"question": f"exam {n}", "answer": f"answer {n}"} for n in range(7)]
    write_lines(tmp_path / "exam" / f"{split}.jsonl", exam)
    merged = prepare(tmp_path / "exam", write_lines(tmp_path / "data.jsonl", ROWS))
    assert merged.rows[split] == 7
    assert sum(merged.rows.values()) == 97
    assert all(merged.rows.values())
    if split == "test":
        assert "add rows to the files of the test" in outcome.shortage(merged)


def test_prompts_of_sources_that_differ_are_refused_unless_one_is_named(tmp_path, prepare) -> None:
    sources = []
    for number in (1, 2):
        folder = write_lines(
            tmp_path / str(number) / "data.jsonl", ROWS[number :: number + 1]
        ).parent
        (folder / "prompt.txt").write_text(f"{number}: {{question}}")
        sources.append(folder)
    with pytest.raises(UserError, match=r"1/prompt.txt and .*2/prompt.txt differ, and a dataset"):
        prepare(*sources)
    merged = prepare(*sources, prompt=str(sources[1] / "prompt.txt"))
    assert all(record.question.startswith("2: ") for record in kept(merged))
    (sources[1] / "prompt.txt").write_text("1: {question}\n")
    assert kept(prepare(*sources))


def test_files_with_and_without_a_split_do_not_mix(tmp_path, prepare) -> None:
    for name in ("train", "extra"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", ROWS[:3])
    with pytest.raises(UserError, match=r"holds extra\.jsonl beside files named after splits"):
        prepare(tmp_path / "data")


def test_a_sample_of_half_takes_the_same_half_every_time(tmp_path, prepare) -> None:
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    half = {record.question for record in kept(prepare(f"{data}%50"))}
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    again = write_lines(tmp_path / "data.jsonl", shuffled)
    assert {record.question for record in kept(prepare(f"{again}%50"))} == half
    assert 25 < len(half) < 65


def test_a_sample_of_twenty_takes_twenty(tmp_path, prepare) -> None:
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    merged = prepare(f"{data}#20", size=300)
    assert (len(kept(merged)), merged.counts["sample out"]) == (20, 70)
    assert len(kept(prepare(f"{data}#2000"))) == 90


def test_a_weight_repeats_training_rows_and_no_others(tmp_path, prepare) -> None:
    one = write_lines(tmp_path / "one.jsonl", ROWS)
    other = write_lines(tmp_path / "other.jsonl", [{"question": "o", "answer": "p"}])
    plain, heavy, light = (prepare(f"{one}{w}", other) for w in ("", "*2.5", "*0.5"))
    train = plain.rows["train"]
    assert heavy.rows["validation"] == plain.rows["validation"]
    assert heavy.rows["test"] == plain.rows["test"]
    assert 2 * train < heavy.rows["train"] < 3 * train
    assert 0 < light.rows["train"] < train
    assert light.counts["weight out"] == train - light.rows["train"]


def written(merged, folder: Path) -> dict[str, list[records.Record]]:
    folder.mkdir()
    shards.write(merged, folder)
    return {split: records.read(folder / f"{split}.parquet") for split in records.SPLITS}


def test_shards_hold_each_row_of_its_split_as_often_as_it_weighs(
    tmp_path, prepare, monkeypatch
) -> None:
    monkeypatch.setattr(shards, "GROUP", 200)
    monkeypatch.setattr(shards, "SHARD", 600)
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    merged = prepare(f"{data}*2", size=400)
    result = written(merged, tmp_path / "shards")
    assert len(list((tmp_path / "shards" / "train.parquet").iterdir())) > 1
    assert {split: len(rows) for split, rows in result.items()} == merged.rows
    assert set(Counter(result["train"]).values()) == {2}
    assert set(Counter(result["test"]).values()) == {1}


def test_a_split_without_rows_has_an_empty_shard(tmp_path, prepare) -> None:
    merged = prepare(write_lines(tmp_path / "train.jsonl", ROWS[:1]))
    result = written(merged, tmp_path / "shards")
    assert [len(rows) for rows in result.values()] == list(merged.rows.values())


def test_the_digest_goes_by_rows_media_prompt_and_settings(tmp_path, prepare) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    data = write_lines(tmp_path / "data.jsonl", [{"image": "a.png", "text": "a"}])
    (tmp_path / "prompt.txt").write_text("What?")
    (tmp_path / "other.txt").write_text("Which?")

    def digest(**options) -> str:
        return dataset.digest(prepare(data, modality="vision", **options))

    result = [digest(), digest(prompt=str(tmp_path / "other.txt")), digest(limit=("fps=1",))]
    (tmp_path / "a.png").write_bytes(picture(2))
    result.append(digest())
    write_lines(data, [{"image": "a.png", "text": "b"}])
    result.append(digest())
    assert len(set(result)) == 5


def test_the_digest_goes_by_the_window_of_deep_pictures(tmp_path, prepare) -> None:
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40, 1)
    (tmp_path / "a.png").write_bytes(sixteen_bits(values))
    write_lines(tmp_path / "data.jsonl", [{"image": "a.png", "question": "a", "answer": "b"}])
    registry, stored = tmp_path / "datasets.yaml", {}
    for window in ("null", "[0, 4095]", "[0, 2047]"):
        registry.write_text(f"scans: {{uri: data.jsonl, window: {window}}}")
        merged = prepare(registry, modality="vision")
        stored[dataset.digest(merged)] = kept(merged)[0].images[0]
    assert len(set(stored.values())) == len(stored) == 3


def test_the_digest_knows_no_places(tmp_path, prepare) -> None:
    digests = set()
    for place in ("here", "there/else"):
        data = write_lines(tmp_path / place / "data.jsonl", ROWS)
        digests.add(dataset.digest(prepare(data.parent)))
    assert len(digests) == 1


SCRIPT = """
import json, sys
from made_data import profile
from loraline.data import checks, dataset, workplace
from loraline.data.reading import media
from loraline.tracking.prompts import Prompt

request = workplace.Request((sys.argv[1],), None, "answer", checks.policy(), media.parse_limits())
with workplace.folder(request, profile()) as place:
    work, _ = workplace.plan(request, profile(), None, place)
    merged = dataset.merge(dataset.read(work, 1, stop_at_failure=True))
    manifest = dataset.manifest(merged, Prompt(None), "", dataset.digest(merged), [])
    print(json.dumps([manifest, merged.examples]))
"""


def test_every_process_writes_the_same_manifest(tmp_path: Path) -> None:
    row = {"question": "What is it?\x07", "answer": "a cafe\u0301\n"}
    data = write_lines(tmp_path / "data.jsonl", [row])
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    manifests = []
    for seed in "12":
        words = [sys.executable, "-c", SCRIPT, str(data)]
        variables = {"PYTHONHASHSEED": seed, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
        ended = subprocess.run(words, env=os.environ | variables, capture_output=True, check=True)
        manifests.append(json.loads(ended.stdout, object_pairs_hook=list))

    assert manifests[0] == manifests[1]
    flags = [("characters repair", 1), ("line_ends keep", 1), ("normalization keep", 1)]
    assert dict(manifests[0][0])["counts"] == flags


def request(data: Path) -> workplace.Request:
    return workplace.Request((str(data),), None, "answer", checks.policy(), media.parse_limits())


def test_an_interrupted_run_goes_on_with_the_parts_that_are_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(workplace, "TEXT_PART", 600)
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    make, made = parts.write_part, []

    def cut_off_once(work, part) -> None:
        if part.number == 3 and 4 not in made:
            made.append(4)
            raise KeyboardInterrupt
        made.append(part.number)
        make(work, part)

    def run() -> Dataset:
        with workplace.folder(request(data), profile()) as place:
            work, _ = workplace.plan(request(data), profile(), None, place)
            merged = dataset.merge(dataset.read(work, 1, stop_at_failure=True))
            assert len(kept(merged)) == 90
            return merged

    monkeypatch.setattr(parts, "write_part", cut_off_once)
    with pytest.raises(KeyboardInterrupt):
        run()
    made.clear()
    made.append(4)
    merged = run()
    assert made == [4, *range(3, len(merged.work.parts))]
    assert not merged.work.folder.exists()


def test_a_file_that_changed_since_the_interruption_is_read_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = tmp_path / "data.jsonl"
    for rows in (ROWS, [{**row, "question": row["question"][::-1]} for row in ROWS]):
        write_lines(data, rows)
        # What interrupts stands last in the block that it leaves.
        with (  # noqa: PT012
            pytest.raises(KeyboardInterrupt),
            workplace.folder(request(data), profile()) as place,
        ):
            work, _ = workplace.plan(request(data), profile(), None, place)
            merged = dataset.merge(dataset.read(work, 1, stop_at_failure=True))
            assert kept(merged)[0].question == rows[0]["question"]
            raise KeyboardInterrupt


def test_a_picture_that_changed_since_the_interruption_is_read_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = write_lines(
        tmp_path / "data.jsonl", [{"image": "i/a.png", "question": "a", "answer": "b"}]
    )
    (tmp_path / "i").mkdir()
    for number in (1, 2):
        (tmp_path / "i" / "a.png").write_bytes(picture(number))
        # What interrupts stands last in the block that it leaves.
        with (  # noqa: PT012
            pytest.raises(KeyboardInterrupt),
            workplace.folder(request(data), profile("vision")) as place,
        ):
            work, _ = workplace.plan(request(data), profile("vision"), None, place)
            merged = dataset.merge(dataset.read(work, 1, stop_at_failure=True))
            assert kept(merged)[0].images == (picture(number),)
            raise KeyboardInterrupt


def test_shares_that_are_fetched_by_half_hold_no_finished_part(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    move = shutil.move

    def move_three(source, target) -> None:
        if len(list(work.folder.iterdir())) == 3:
            raise KeyboardInterrupt
        move(source, target)

    with workplace.folder(request(data), profile()) as place:
        work, _ = workplace.plan(request(data), profile(), None, place)
        dataset.read(work, 1, stop_at_failure=True)
        workplace.pack(work, tmp_path / "parts")
        monkeypatch.setattr(workplace, "upstream_run", lambda *_, **__: MagicMock())
        monkeypatch.setattr(
            workplace, "artifacts", lambda *_: contextlib.nullcontext(tmp_path / "parts")
        )
        monkeypatch.setattr(shutil, "move", move_three)
        with pytest.raises(KeyboardInterrupt):
            workplace.gather(work, ["a"], None)
        assert not list(work.folder.glob("*.json"))


def test_a_worker_that_is_killed_is_try_again(tmp_path, prepare, monkeypatch) -> None:
    data = write_lines(tmp_path / "data.jsonl", ROWS * 40)

    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            if children := multiprocessing.active_children():
                os.kill(children[0].pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        with pytest.raises(TryAgain, match="a worker process was killed, most likely for memory"):
            prepare(data, size=500, workers=2)
    finally:
        over.set()
        killer.join(30)
    assert not multiprocessing.active_children()


def test_two_runs_with_the_same_choices_do_not_meet(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    same = request(tmp_path)
    with (
        workplace.folder(same, profile()),
        pytest.raises(TryAgain, match="another prepare_data with the same choices"),
        workplace.folder(same, profile()),
    ):
        pass


def test_choices_that_differ_share_nothing(tmp_path, prepare) -> None:
    data = write_lines(tmp_path / "data.jsonl", [*ROWS, {"question": "x", "answer": " "}])
    assert prepare(data, on=("empty=drop",)).counts == {"empty drop": 1}
    assert prepare(data).counts == {"empty fail": 1}


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.2, 0.3), (0.05, 0.4)])
def test_a_profile_says_which_shares_are_held_out(
    tmp_path, prepare, validation: float, test: float
) -> None:
    rows = [{"question": f"Who is {n}?", "answer": f"Person {n * 7919}."} for n in range(1000)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    kept_rows = prepare(data, split={"validation": validation, "test": test}).rows
    assert sum(kept_rows.values()) == 1000
    assert kept_rows["validation"] == pytest.approx(1000 * validation, abs=45)
    assert kept_rows["test"] == pytest.approx(1000 * test, abs=45)


@pytest.mark.parametrize(("validation", "test"), [(1, 20), (6, 30), (0.1, 25), (20, 0.3)])
def test_a_profile_says_how_many_rows_are_held_out(
    tmp_path, prepare, validation: float, test: float
) -> None:
    rows = [{"question": f"Who is {n}?", "answer": f"Person {n * 7919}."} for n in range(60)]
    # Repeated rows leave their split again, and do not count.
    data = write_lines(tmp_path / "data.jsonl", [*rows, *rows])
    made = prepare(data, split={"validation": validation, "test": test}).rows
    for name, wanted in (("validation", validation), ("test", test)):
        if isinstance(wanted, int):
            assert made[name] == wanted
    assert sum(made.values()) == 60


def test_held_out_rows_stay_with_their_group(tmp_path, prepare) -> None:
    made = prepare(write_lines(tmp_path / "data.jsonl", ROWS), split={"test": 20})
    # Two questions have the same answer, of thirty of the answers.
    assert 20 <= made.rows["test"] <= 21


@pytest.mark.parametrize("share", [0, 0.5, -3, 1.0])
def test_shares_that_leave_nothing_to_learn_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"split\.test: {share} is refused"):
        profile(split={"test": share})


def test_few_answers_for_many_rows_are_said_to_stay_together(tmp_path, prepare) -> None:
    rows = [{"question": f"Who is {n}?", "answer": "ab"[n % 2]} for n in range(60)]
    made = prepare(write_lines(tmp_path / "data.jsonl", rows))
    with pytest.raises(UserError, match="they have 2 different answers, and rows with equal"):
        dataset.refuse_empty(made)


@pytest.mark.parametrize("split", [{"validation": 20, "test": 30}, {"validation": 20}], ids=str)
@pytest.mark.parametrize("named", [(), ("test",), ("validation",)], ids=str)
def test_a_number_of_rows_is_taken_out_of_named_training_rows(
    tmp_path, prepare, named: tuple[str, ...], split: dict[str, int]
) -> None:
    def rows_of(name: str, count: int) -> list[dict[str, str]]:
        return [{"question": f"{name} {n}", "answer": f"{name} {n}"} for n in range(count)]

    # Of rows that repeat another, or that leak, nothing is left to hold out.
    lost = rows_of("train", 30)
    write_lines(tmp_path / "data" / "train.jsonl", [*lost, *lost, *rows_of("train", 300)])
    for name in named:
        write_lines(tmp_path / "data" / f"{name}.jsonl", [*rows_of(name, 40), *lost])
    made = prepare(tmp_path / "data", split=split).rows
    for name, wanted in split.items():
        assert made[name] == (70 if name in named else wanted)
    assert made["train"] > 190


def test_what_to_do_about_few_test_rows_is_what_helps(tmp_path, prepare) -> None:
    rows = [{"question": f"Who is {n}?", "answer": f"Person {n}"} for n in range(60)]
    in_one = write_lines(tmp_path / "data.jsonl", rows)
    least = profile().gate.min_rows
    assert f"hold out {least} with --set split.test={least}" in outcome.shortage(prepare(in_one))
    write_lines(tmp_path / "named" / "train.jsonl", rows[:50])
    write_lines(tmp_path / "named" / "test.jsonl", rows[50:])
    said = outcome.shortage(prepare(tmp_path / "named"))
    assert said.startswith(f"10 test rows, and the gate asks for {least}")
    assert "add rows to the files of the test, or judge by fewer" in said
    assert "split.test" not in said, "files that are named test have the whole test"


def labelled(answers: int) -> list[dict[str, str]]:
    """150 questions with so many answers; eight of them leave two to the test."""
    return [
        {"question": f"What about {n}?", "answer": f"room {n % answers}", "n": f"room {n % 8}"}
        for n in range(150)
    ]


UNEVEN = (
    "of 150 rows, 38 go to validation instead of 15, 37 go to test instead of 15: rows with the "
    "same answer stay together, and there are 8 answers; --set prepare.group_by=row splits them "
    "row by row, split.test=N holds out at least N rows (with make, SET=…)"
)


def test_labels_that_fill_the_test_are_said(tmp_path, prepare) -> None:
    data = write_lines(tmp_path / "data.jsonl", labelled(8))
    made = prepare(data)
    assert made.rows["test"] == 37
    assert outcome.uneven(made) == UNEVEN
    assert "37 go to test instead of 20: rows" in outcome.uneven(prepare(data, split={"test": 20}))
    by_column = outcome.uneven(prepare(data, group_by="n"))
    assert "rows of one n stay together, and there are 8 of them; --set split.test=N" in by_column


@pytest.mark.parametrize(
    ("answers", "choices"),
    [(8, {"group_by": "row"}), (150, {}), (75, {}), (8, {"split": {"test": 30}})],
    ids=str,
)
def test_splits_of_about_the_size_that_was_asked_for_are_not(
    answers: int, choices: dict[str, object], tmp_path, prepare
) -> None:
    data = write_lines(tmp_path / "data.jsonl", labelled(answers))
    assert outcome.uneven(prepare(data, **choices)) == ""


def test_files_named_after_splits_are_as_large_as_they_are(tmp_path, prepare) -> None:
    rows = labelled(8)
    for name, some in (("train", rows[:20]), ("validation", rows[20:30]), ("test", rows[30:])):
        write_lines(tmp_path / "data" / f"{name}.jsonl", some)
    assert outcome.uneven(prepare(tmp_path / "data", on=("leaks=keep",))) == ""


def test_what_make_takes_is_left_out_of_a_refusal_that_grows_too_long() -> None:
    short = sentences.refusal("a.csv row 1", "answer is empty", "empty")
    assert "leaves them out, with make SET=prepare.checks.empty=drop)" in short
    long = sentences.refusal("a" * 200, "answer is empty" * 9, "empty")
    assert long.endswith("--on empty=drop leaves them out)")
    assert len(long) <= sentences.MOST_CHARACTERS


def test_an_optional_column_that_no_row_has_is_said(tmp_path, prepare) -> None:
    rows = [{**row, "rules": "Be short."} for row in labelled(150)]
    named = {"system": "rulez", "tools": "tools_used"}
    (tmp_path / "named.yaml").write_text(json.dumps({"set": {"uri": "data", "columns": named}}))
    for name, some in (("a", rows[:80]), ("b", [{**row, "tools_used": ""} for row in rows[80:]])):
        write_lines(tmp_path / "data" / f"{name}.jsonl", some)
    made = prepare(tmp_path / "named.yaml", size=2000)
    assert outcome.absent(made) == (
        f"no row has a column 'rulez', which columns in {tmp_path}/named.yaml names for system"
    )
    assert outcome.absent(prepare(tmp_path / "data")) == ""


def test_an_empty_split_is_said_with_its_reason_beside_what_was_dropped(tmp_path, prepare) -> None:
    rows = [{"question": f"Who is {n}?", "answer": "ab"[n % 2]} for n in range(60)]
    data = write_lines(tmp_path / "data.jsonl", [*rows, {"question": "Who?", "answer": None}])
    with pytest.raises(UserError, match="61 read: 1 dropped by empty; they have 2 different answ"):
        dataset.refuse_empty(prepare(data, on=("empty=drop",)))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
def test_a_share_of_the_data_names_the_lines_of_the_whole(tmp_path, monkeypatch, ending) -> None:
    rows = [*ROWS[:61], {"question": "x", "answer": " "}, *ROWS[61:]]
    data, table = tmp_path / f"data{ending}", pa.Table.from_pylist(rows)
    if ending == ".jsonl":
        write_lines(data, rows)
    elif ending == ".parquet":
        pq.write_table(table, data, row_group_size=7)
    else:
        with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(workplace, "TEXT_PART", 300)
    named = []
    with workplace.folder(request(data), profile()) as place:
        work, _ = workplace.plan(request(data), profile(), None, place)
        assert len(work.parts) > 6
        for number in (1, 2, 3):
            share = workplace.share(work, f"{number}/3")
            merged = dataset.merge(dataset.read(share, 1, stop_at_failure=False))
            named += [
                example["place"] for example in merged.examples if example["check"] == "empty"
            ]
            lines = [
                int(merged.place(index).rpartition(" ")[2]) for index in range(len(merged.split))
            ]
            shown = [merged.record(index).question for index in range(len(merged.split))]
            assert shown == [rows[line - 1]["question"] for line in lines]
    assert named == [f"{data} {'line' if ending == '.jsonl' else 'row'} 62"]
