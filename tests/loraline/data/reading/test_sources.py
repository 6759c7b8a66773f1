"""Sources by URI, alone and together; S3 has a file of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError
from made_data import kept, picture, write_lines

from loraline.data.reading import entries, sources
from loraline.errors import TryAgain, UserError
from loraline.profiles.preparation import Entry, SourceSettings

ROWS = [{"question": f"What is {n}?", "answer": f"it is {n}"} for n in range(20)]


def questions(merged) -> list[str]:
    return [record.question for record in kept(merged)]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("data", Entry(uri="data")),
        ("data%50", Entry(uri="data", sample="%50")),
        ("s3://b/p/#2000*0.5", Entry(uri="s3://b/p/", sample="#2000", weight=0.5)),
        ("hf://o/n@v1:train%1.5", Entry(uri="hf://o/n@v1:train", sample="%1.5")),
        ("mlflow://0a1b*3", Entry(uri="mlflow://0a1b", weight=3)),
    ],
)
def test_a_flag_may_carry_a_sample_and_a_weight(flag: str, expected: Entry) -> None:
    assert entries.entries([flag]) == [expected]


def test_a_folder_that_is_named_like_a_sample_is_a_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "batch#12" / "data.jsonl", ROWS)
    (entry,) = entries.entries([str(tmp_path / "batch#12")])
    assert entry.sample == ""


@pytest.mark.parametrize("flag", ["data%0", "data%101", "data*0", "data#0"])
def test_a_sample_or_weight_of_nothing_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=r"--data .* (is not (between|above) 0|of no rows)"):
        entries.entries([flag])


def test_a_registry_names_sources_and_says_more_than_flags(
    tmp_path: Path, prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "one.jsonl", [{"ask": f"q{n}", "reply": f"a{n}"} for n in range(9)])
    write_lines(tmp_path / "other.jsonl", ROWS)
    registry = {
        "support": {"uri": "one.jsonl", "columns": {"question": "ask", "answer": "reply"}},
        "faq": {"uri": "other.jsonl", "sample": "#3", "split": "train"},
        "plain": "other.jsonl",
    }
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(registry))
    assert len(kept(prepare("support"))) == 9
    merged = prepare("support#4", "faq")
    assert merged.formats["question_answer"] == 29
    assert len(kept(merged)) == 7
    # All of a registry: the plain one repeats what the sampled one has.
    everything = prepare("datasets.yaml")
    assert len(kept(everything)) == 29


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("a: one.jsonl\na: other.jsonl", "is not valid YAML: key 'a' is given twice"),
        ("", "must hold names of datasets"),
        ("a: {url: b}", r"dataset 'a', key 'uri': field required \(keys: columns, .*, uri, sample"),
        ("a: {uri: b, smaple: 3}", "key 'smaple': extra inputs are not permitted"),
        ("a: {uri: b, sample: half}", "key 'sample': string should match pattern"),
        ("a: {uri: b, weight: -1}", "key 'weight': input should be greater than 0"),
        ("a: {uri: b, boxes: inches}", "key 'boxes': input should be 'pixels', 'unit'"),
    ],
)
def test_a_registry_that_says_nonsense_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "all.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        entries.entries([str(tmp_path / "all.yaml")])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "ftp://x/y",
            r"unknown source ftp://; accepted: a path, s3://, hf://, dvc:// or mlflow://",
        ),
        ("nowhere", "'nowhere' is not a folder or a file"),
        ("README.md", "is not a data file; accepted: .jsonl"),
    ],
)
def test_a_source_that_is_none_is_refused(
    uri: str, message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[4])
    with pytest.raises(UserError, match=message):
        sources.locate(Entry(uri=uri), tmp_path)


def test_a_misspelt_path_is_said_whole_with_the_nearest_names(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my").mkdir()
    write_lines(tmp_path / "my" / "shop.csv", [])
    write_lines(tmp_path / "my" / "towns.csv", [])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError) as refusal:
        sources.locate(Entry(uri="../my/shopp.csv"), tmp_path)
    assert str(refusal.value) == (
        f"--data '../my/shopp.csv' is not a folder or a file: {tmp_path}/my/shopp.csv; did you "
        "mean shop.csv? (with make, DATA=)"
    )
    with pytest.raises(UserError) as refusal:
        sources.locate(Entry(uri="../your/shop.csv"), tmp_path)
    assert str(refusal.value).endswith(
        f": {tmp_path}/your/shop.csv; there is no folder {tmp_path}/your (with make, DATA=)"
    )
    with pytest.raises(UserError, match=r"zoo; name what there is \(with make, DATA=\)$"):
        sources.locate(Entry(uri="zoo"), tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00004.parquet", "train"),
        ("val.csv", "validation"),
        ("dev_clean.jsonl", "validation"),
        ("test/part.tar", "test"),
        ("test.parquet/00000.parquet", "test"),
        ("training_notes/x.jsonl", "train"),
        ("latest.jsonl", None),
        ("gsm8k-test.jsonl", "test"),
        ("data_train.csv", "train"),
        ("rows.val.jsonl", "validation"),
        ("alpaca_eval.json", "validation"),
        ("train_eval.jsonl", "train"),
        ("test1.jsonl", "test"),
        ("testing.jsonl", "test"),
        ("evaluation.jsonl", "validation"),
        ("testimonials.jsonl", None),
        ("contest.jsonl", None),
        ("my_test_set/rows.jsonl", "test"),
        ("metadata.jsonl", None),
    ],
)
def test_splits_are_told_by_names(name: str, split: str | None) -> None:
    assert sources.split_of(name) == split


def test_only_the_topmost_data_files_are_read(tmp_path: Path, prepare) -> None:
    data = tmp_path / "data"
    write_lines(data / "rows.jsonl", ROWS[:3])
    write_lines(data / "old" / "rows.jsonl", ROWS)
    write_lines(data / ".cache" / "rows.jsonl", ROWS)
    (data / "old" / "more.jsonl.gz").write_bytes(b"")
    (data / "dataset_info.json").write_text("{}")
    assert len(kept(prepare(data))) == 3


@pytest.mark.parametrize(
    "name",
    ["more.jsonl.xz", "more.xlsx", "x.parquet.gz", "more.pkl", "more.rar", "more.zip", "a.tar.xz"],
)
def test_files_that_hold_rows_and_are_not_read_are_refused(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"holds {name}, which would not be read"):
        sources.locate(Entry(uri=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("member", ["rows.jsonl", "more/rows.csv.gz", "inner.zip", "a.xlsx"])
def test_a_zip_that_holds_rows_is_refused_and_one_of_pictures_is_not(
    member: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "rows.jsonl", ROWS)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/a.png", b"")
    assert len(sources.locate(Entry(uri=str(tmp_path)), tmp_path).files) == 1
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(UserError, match=r"holds more\.zip, .*; unpack it"):
        sources.locate(Entry(uri=str(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("link", "target"),
    [("more.jsonl", "rows.jsonl"), ("more.jsonl", "gone.jsonl"), ("test", ".")],
)
def test_a_link_to_rows_outside_of_the_folder_is_neither_read_nor_passed_over(
    link: str, target: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "elsewhere" / "rows.jsonl", ROWS)
    folder = tmp_path / "data"
    write_lines(folder / "train" / "rows.jsonl", ROWS[:3])
    (folder / link).symlink_to(tmp_path / "elsewhere" / target)
    with pytest.raises(UserError, match=rf"data/{link} is a link to .*, which would not be read"):
        sources.locate(Entry(uri=str(folder)), tmp_path)


def test_a_link_that_no_row_is_lost_by_is_no_matter(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "secret.jsonl", ROWS)
    folder = tmp_path / "data"
    write_lines(folder / "rows.jsonl", ROWS[:3])
    (folder / "old").mkdir()
    (folder / "old" / "rows.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "pictures").symlink_to(tmp_path)
    (folder / "dataset_info.json").symlink_to(tmp_path / "gone.json")
    (folder / "again").symlink_to(folder / "old")
    assert len(kept(prepare(folder))) == 3


def test_a_folder_that_load_dataset_reads_is_a_hugging_face_source(
    tmp_path: Path, prepare, monkeypatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        write_lines(tmp_path / "hub" / f"{split}.jsonl", ROWS[:5] if split == "test" else ROWS[5:])
    merged = prepare(f"hf://{tmp_path}/hub")
    assert len(kept(merged)) == 20
    assert merged.rows["test"] == 5
    assert questions(prepare(f"hf://{tmp_path}/hub:test")) == [row["question"] for row in ROWS[:5]]


def test_a_folder_that_datasets_saved_is_a_hugging_face_source(tmp_path: Path, prepare) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = [{"image": {"bytes": picture(n), "path": None}, "text": str(n)} for n in range(6)]
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    (tmp_path / "prompt.txt").write_text("Read.")
    merged = prepare(
        f"hf://{tmp_path}/saved:train",
        modality="vision",
        prompt=str(tmp_path / "prompt.txt"),
        size=200,
        workers=2,
    )
    assert [record.images[0] for record in kept(merged)] == [picture(n) for n in range(6)]


@pytest.mark.parametrize("split", ["train[:3]", "train[50%:]"])
def test_a_slice_of_a_hugging_face_split_is_not_read_as_the_whole(
    split: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_lines(tmp_path / "hub" / "train.jsonl", ROWS)
    with pytest.raises(UserError, match="is a selection, of which all rows would be read; take a"):
        sources.locate(Entry(uri=f"hf://{tmp_path}/hub:{split}"), tmp_path)


def test_a_hugging_face_row_names_no_file_outside_of_its_folder(tmp_path: Path, prepare) -> None:
    import datasets

    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "own.png").write_bytes(picture(2))
    rows = [{"image": str(tmp_path / "secret.png"), "text": "a"}, {"image": "own.png", "text": "b"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "prompt.txt").write_text("Read.")
    merged = prepare(
        f"hf://{tmp_path}/saved",
        modality="vision",
        prompt=str(tmp_path / "prompt.txt"),
        on=("media_missing=drop",),
    )
    assert [record.images[0] for record in kept(merged)] == [picture(2)]
    assert merged.counts == {"media_missing drop": 1}


def test_a_hub_that_cannot_be_reached_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match="hf://nobody/nothing is not in the local cache and the hub"):
        sources.locate(Entry(uri="hf://nobody/nothing"), tmp_path)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Callable[[int, str], None]]:
    """A hub that answers every request with a status and, where one is set, with a code."""
    import datasets
    from huggingface_hub import constants

    answer: list[tuple[int, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = answer[-1]
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The hub's client waits between its tries.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield lambda status, code: answer.append((status, code))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "doesn't exist on the Hub or cannot be accessed"),
        (401, "GatedRepo", "is a gated dataset"),
        (404, "RevisionNotFound", "Revision 'v9' doesn't exist"),
        (401, "", "401 Unauthorized"),
    ],
)
def test_what_the_hub_refuses_is_not_tried_again(
    status: int, code: str, reason: str, hub: Callable[[int, str], None], tmp_path: Path
) -> None:
    hub(status, code)
    with pytest.raises(UserError, match=f"hf://nobody/nothing@v9 cannot be loaded: .*{reason}"):
        sources.locate(Entry(uri="hf://nobody/nothing@v9"), tmp_path)


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_overloaded_is_tried_again(
    status: int, hub: Callable[[int, str], None], tmp_path: Path
) -> None:
    hub(status, "")
    with pytest.raises(TryAgain, match="the hub does not answer"):
        sources.locate(Entry(uri="hf://nobody/nothing"), tmp_path)


@pytest.mark.parametrize(
    ("status", "is_away"), [(401, False), (404, False), (429, True), (503, True)]
)
def test_an_answer_of_the_hub_is_final_unless_it_is_overloaded(status: int, is_away: bool) -> None:
    """As huggingface_hub raises it where datasets does not make another error of it."""
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    assert sources.is_hub_away(HfHubHTTPError("refused", response=response)) == is_away


def test_a_folder_of_datasets_that_is_not_there_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/gone is no folder here"):
        sources.locate(Entry(uri=f"hf://{tmp_path}/gone"), tmp_path)


def test_a_split_that_is_not_there_is_said_with_those_that_are(tmp_path: Path) -> None:
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="has no split 'eval', it has train"):
        sources.locate(Entry(uri=f"hf://{tmp_path}/saved:eval"), tmp_path)


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with two versions of a folder of rows."""
    pytest.importorskip("dvc.api", reason="DVC is an extra: pip install '.[dvc]'")
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init")
    repo = Repo.init(str(folder))
    for version, count in (("v1", 5), ("v2", 8)):
        write_lines(folder / "text" / "rows.jsonl", ROWS[:count])
        repo.add(str(folder / "text"))
        git(folder, "add", "-A")
        git(folder, "commit", "-m", version)
        git(folder, "tag", version)
    repo.close()
    return folder


@pytest.mark.parametrize(("revision", "rows"), [("@v1", 5), ("@v2", 8), ("", 8)])
def test_a_dvc_repository_is_read_at_a_revision(
    revision: str, rows: int, repository: Path, prepare
) -> None:
    assert len(kept(prepare(f"dvc://{repository}{revision}:text"))) == rows
    assert len(kept(prepare(f"dvc://{repository}{revision}:text/rows.jsonl"))) == rows


@pytest.mark.parametrize("rest", ["@v9:text", ":nothing", "/gone:text"])
def test_a_dvc_path_that_is_not_there_is_said(rest: str, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dvc://.* cannot be fetched"):
        sources.locate(Entry(uri=f"dvc://{repository}{rest}"), tmp_path / "cache")


def test_what_an_interrupted_run_fetched_of_dvc_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    remote = tmp_path / "remote" / "text"

    class Files:
        """As DVC has it, a folder that is there already gets the other one inside."""

        def __init__(self, repository: str, rev: str | None) -> None:
            pass

        def isdir(self, path: str) -> bool:
            return True

        def get(self, path: str, target: str, recursive: bool) -> None:
            shutil.copytree(remote, Path(target, path) if Path(target).is_dir() else target)

    names = {"dvc.api": "DVCFileSystem", "dvc.exceptions": "DvcException"}
    for module, name in {**names, "scmrepo.exceptions": "SCMError"}.items():
        values = {name: Files if module == "dvc.api" else KeyError}
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**values))
    for number in (1, 2):
        write_lines(remote / "rows.jsonl", ROWS[:number])
        source = sources.locate(Entry(uri="dvc://repository:text"), tmp_path / "cache")
        (file,) = source.files
        assert source.path(file.name).read_text().count("\n") == number


def test_dvc_that_is_not_installed_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dvc.api", None)
    with pytest.raises(UserError, match=r"needs DVC; install"):
        sources.locate(Entry(uri=f"dvc://{tmp_path}:text"), tmp_path / "cache")


def test_what_a_profile_says_of_all_sources_holds_where_a_source_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = {"exam": {"uri": "exam.csv", "encoding": "gbk", "columns": {"question": "q"}}}
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(registry))
    usual = SourceSettings(columns={"answer": "a"}, encoding="utf-16", ignore=("page",))

    exam, faq, flagged = entries.entries(
        ["exam", Entry(uri="faq%50", learn="last")], defaults=usual
    ) + entries.entries(["faq"], "latin-1", usual)

    assert (exam.encoding, exam.columns, exam.ignore) == ("gbk", {"question": "q"}, ("page",))
    assert (faq.uri, faq.sample, faq.learn) == ("faq", "%50", "last")
    assert (faq.encoding, faq.columns) == ("utf-16", {"answer": "a"})
    assert flagged.encoding == "latin-1"


def test_a_window_goes_from_black_to_white(tmp_path: Path) -> None:
    registry = tmp_path / "datasets.yaml"
    registry.write_text("scans: {uri: data, window: [4095, 0]}\n")
    with pytest.raises(UserError, match=r"key 'window': .*black and lies below the second"):
        entries.entries([str(registry)])
