"""What the gateway keeps: sessions, jobs, answers in the cache."""

from __future__ import annotations

import base64
import csv
import html
import io
import json

import httpx
import pytest

from gateway import exports, jobs, keys, sessions
from gateway.store import Store
from tests.gateway.conftest import ask_chat, picture, started
from tests.gateway.test_faults import until

EVIL = '=cmd|"/c calc"!A1 <img src=http://x/y onerror=alert(1)>\n```\n# no heading'


def test_a_session_keeps_what_was_asked_in_it(vision, stub, png, session) -> None:
    vision.client.post("/predict", files={"files": ("x", png)}, data={"session": session})
    vision.client.post("/tasks/recognition", files={"files": ("x", png)}, data={"session": session})
    vision.client.post(f"/sessions/{session}/turns", json={"question": "Hi", "answer": "Ho"})
    result = vision.client.get(f"/sessions/{session}").json()
    assert [turn["task"] for turn in result["turns"]] == ["predict", "recognition", "chat"]
    medium = result["turns"][0]["media"][0]
    image = vision.client.get(f"/sessions/{session}/media/{medium['sha256']}")
    assert (image.content, image.headers["content-type"]) == (png, "image/png")
    (listed,) = [
        each for each in vision.client.get("/sessions").json()["sessions"] if each["id"] == session
    ]
    assert (listed["title"], listed["turns"]) == ("Formulas", 3)
    renamed = vision.client.patch(f"/sessions/{session}", json={"title": "Other"}).json()
    assert renamed["title"] == "Other"
    assert vision.client.delete(f"/sessions/{session}").status_code == 204
    assert vision.client.get(f"/sessions/{session}").status_code == 404


def test_a_list_of_sessions_holds_one_of_them_at_a_time(start, monkeypatch) -> None:
    """Each may have 32 MiB, and a key a thousand of them."""
    import weakref

    class Document(dict):
        pass

    held: weakref.WeakSet = weakref.WeakSet()
    Document.__hash__ = object.__hash__
    most = []
    read = Store.read

    def counted(self, folder):
        document = Document(read(self, folder))
        held.add(document)
        most.append(len(held))
        return document

    with start() as gateway:
        for number in range(5):
            gateway.client.post("/sessions", json={"title": str(number)})
        monkeypatch.setattr(Store, "read", counted)
        result = gateway.client.get("/sessions").json()["sessions"]
    assert [(each["title"], each["turns"]) for each in result] == [
        (str(number), 0) for number in reversed(range(5))
    ]
    # The next is read before the last is let go.
    assert max(most) <= 2


def test_a_streamed_answer_is_kept_too(vision, stub, png, session) -> None:
    data = {"session": session, "stream": "true"}
    vision.client.post("/predict", files={"files": ("x", png)}, data=data)
    (turn,) = vision.client.get(f"/sessions/{session}").json()["turns"]
    assert turn["answer"]["predictions"][0]["caption"] == "one two three"


def test_a_session_that_is_none_is_said_before_the_model_is_asked(vision, stub, png) -> None:
    data = {"session": "0" * 32}
    answer = vision.client.post("/predict", files={"files": ("x", png)}, data=data)
    assert answer.status_code == 404
    assert not stub.requests


@pytest.mark.parametrize("path", ["/predict", "/tasks/recognition", "/compare"])
@pytest.mark.parametrize("most", ["MAX_TURNS", "MAX_SESSION"])
def test_a_full_session_is_refused_before_the_model_is_asked(
    vision, stub, png, session, path, most, monkeypatch
) -> None:
    vision.client.post("/predict", files={"files": ("x", png)}, data={"session": session})
    asked = len(stub.requests)
    monkeypatch.setattr(sessions, most, 1)
    new = picture("PNG", (50, 50))
    answer = vision.client.post(path, files={"files": ("x", new)}, data={"session": session})
    assert (answer.status_code, answer.json()["code"]) == (409, "session_full")
    assert len(stub.requests) == asked


def test_a_sessions_texts_have_a_limit_too(vision, stub, png, session, monkeypatch) -> None:
    """Its document is read whole for each turn: a key could fill the memory with one."""
    monkeypatch.setattr(sessions, "MAX_TEXTS", 10_000)
    turn = {"question": "x" * 3000, "answer": "y" * 3000}
    assert vision.client.post(f"/sessions/{session}/turns", json=turn).status_code == 201
    full = vision.client.post(f"/sessions/{session}/turns", json=turn)
    assert (full.status_code, full.json()["code"]) == (409, "session_full")
    assert len(vision.client.get(f"/sessions/{session}").json()["turns"]) == 1
    monkeypatch.setattr(sessions, "MAX_TEXTS", 5000)
    data = {"session": session}
    full = vision.client.post("/predict", files={"files": ("x", png)}, data=data)
    assert (full.status_code, full.json()["code"]) == (409, "session_full")
    assert not stub.requests


def test_each_key_sees_its_own_alone(start, tmp_path, stub, png) -> None:
    entries, given = [], []
    for name in ("alice", "bob"):
        key, entry = keys.new_key(name)
        given.append({"Authorization": f"Bearer {key}"})
        entries.append(entry.model_dump(exclude_none=True))
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    alice, bob = given
    with start(api_keys_file=tmp_path / "keys.json") as gateway:
        client = gateway.client
        session = client.post("/sessions", json={}, headers=alice).json()["id"]
        job = client.post("/jobs", files={"files": ("x", png)}, headers=alice).json()["id"]
        for path in (
            f"/sessions/{session}",
            f"/sessions/{session}/export",
            f"/jobs/{job}",
            f"/jobs/{job}/results.jsonl",
        ):
            assert client.get(path, headers=alice).status_code == 200
            assert client.get(path, headers=bob).status_code == 404
        for path in (f"/sessions/{session}", f"/jobs/{job}"):
            assert client.delete(path, headers=bob).status_code == 404
        assert client.get("/sessions", headers=bob).json() == {"sessions": []}
        assert client.get("/jobs", headers=bob).json() == {"jobs": []}
        data = {"session": session}
        other = client.post("/predict", files={"files": ("x", png)}, data=data, headers=bob)
        assert other.status_code == 404


@pytest.fixture
def evil(vision, stub, session):
    """A session whose model writes what harms programs that open an export."""
    stub.tokens = [EVIL]
    exif = picture("JPEG", (40, 30))
    vision.client.post("/predict", files={"files": ("x", exif)}, data={"session": session})
    turn = {"question": EVIL, "answer": EVIL, "model": f"![x](http://x/y)\n{EVIL}"}
    vision.client.post(f"/sessions/{session}/turns", json=turn)
    return session


def export(gateway, session: str, form: str):
    answer = gateway.client.get(f"/sessions/{session}/export", params={"format": form})
    assert answer.status_code == 200, answer.text
    assert f'filename="session-{session[:8]}.{form}"' in answer.headers["content-disposition"]
    return answer


@pytest.mark.parametrize("form", ["md", "csv", "html", "pdf"])
@pytest.mark.parametrize("task", [{}, {"task": "recognition"}], ids=["prompt", "task"])
def test_an_export_has_each_models_answer_of_a_comparison(
    vision, stub, png, session, form, task
) -> None:
    stub.answers = {"tiny-lora": ["a"], "base": ["b"]}
    files = [("files", ("x", png))] * (1 if task else 2)
    data = {"session": session, "models": "tiny-lora,base", **task}
    assert vision.client.post("/compare", files=files, data=data).status_code == 200
    stub.failing = {"base"}
    assert vision.client.post("/compare", files=files, data=data).status_code == 200
    answer = export(vision, session, form)
    if form == "pdf":
        from pypdf import PdfReader

        text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(answer.content)).pages)
    else:
        text = html.unescape(answer.text)
    assert text.count("tiny-lora: a") == 2 * len(files)
    assert text.count("base: b") == len(files)
    assert text.count("base: The model's server failed with 500.") == 1


def test_json_is_the_whole_session(vision, evil) -> None:
    result = json.loads(export(vision, evil, "json").content)
    assert result == vision.client.get(f"/sessions/{evil}").json()


def test_markdown_has_the_strangers_text_in_blocks_alone(vision, evil) -> None:
    text = export(vision, evil, "md").text
    outside, fence = [], ""
    for line in text.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line
        else:
            outside.append(line)
    assert not fence
    headings = [line for line in outside if line.startswith("## ")]
    others = [line for line in outside if line not in headings]
    assert len(headings) == 2
    assert not any(word in line for line in others for word in ("<img", "cmd", "no heading"))
    # A model's name is a client's words where its answer is kept by /turns.
    assert not any(mark in line for line in headings for mark in ("<", "[", "`"))
    assert EVIL in text


def test_csv_has_no_formula(vision, evil) -> None:
    rows = list(csv.reader(io.StringIO(export(vision, evil, "csv").text)))
    assert rows[0] == ["time", "task", "model", "media", "question", "answer"]
    assert len(rows) == 3
    for row in rows:
        assert not any(cell.startswith(exports.FORMULA) for cell in row)
    assert rows[2][5] == "'" + EVIL


def test_html_runs_and_fetches_nothing(vision, evil) -> None:
    answer = export(vision, evil, "html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<img src=http" not in answer.text and "&lt;img src=http" in answer.text
    assert "default-src 'none'" in answer.text
    assert answer.text.count('src="data:image/jpeg;base64,') == 1


def test_html_of_a_large_session_does_not_fill_the_memory(vision, session) -> None:
    import tracemalloc

    (path,) = vision.gateway.sessions.store.root.glob(f"*/{session}/session.json")
    media = [{"sha256": f"{number:064}", "mime": "image/png"} for number in range(30)]
    for medium in media:
        (path.parent / "media" / medium["sha256"]).write_bytes(b"x" * 2**21)
    document = json.loads(path.read_text())
    document["turns"] = [{"time": 0, "media": [each], "answer": {"text": "a"}} for each in media]
    path.write_text(json.dumps(document))
    tracemalloc.start()
    try:
        address = f"{vision.url}/sessions/{session}/export?format=html"
        with httpx.stream("GET", address) as answer:
            length = sum(len(piece) for piece in answer.iter_bytes())
            assert answer.status_code == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length > 80_000_000
    assert peak < 40_000_000


def test_pdf_holds_the_text_and_no_link(vision, evil) -> None:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(export(vision, evil, "pdf").content))
    text = "".join(page.extract_text() for page in reader.pages)
    assert "onerror=alert(1)" in text.replace("\n", "")
    assert not any("/Annots" in page for page in reader.pages)
    assert sum(len(page.images) for page in reader.pages) == 1


def test_pdf_keeps_words_apart_that_no_plain_space_parts(vision, session) -> None:
    from pypdf import PdfReader

    turn = {"question": "a\tb", "answer": "10\u00a0km\u2003wide\r\nnext\u2028last"}
    vision.client.post(f"/sessions/{session}/turns", json=turn)
    reader = PdfReader(io.BytesIO(export(vision, session, "pdf").content))
    words = "".join(page.extract_text() for page in reader.pages).split()
    assert {"a", "b", "10", "km", "wide", "next", "last"} <= set(words)


def test_another_format_is_refused(vision, session) -> None:
    answer = vision.client.get(f"/sessions/{session}/export", params={"format": "exe"})
    assert answer.status_code == 422
    assert answer.json()["code"] == "field"


def wait_for(gateway, job: str) -> dict:
    def done() -> bool:
        return gateway.client.get(f"/jobs/{job}").json()["state"] == "done"

    until(done, 20)
    return gateway.client.get(f"/jobs/{job}").json()


def results(gateway, job: str) -> list[dict]:
    text = gateway.client.get(f"/jobs/{job}/results.jsonl").text
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda each: each["index"])


def test_a_job_answers_every_file_and_says_which_it_could_not(vision, stub, png) -> None:
    files = [("files", (f"{index}.png", png)) for index in range(5)]
    files.append(("files", ("bad.png", b"\x89PNG\r\n\x1a\nbroken")))
    answer = vision.client.post("/jobs", files=files)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["total"], job["state"]) == (6, "running")
    assert (lambda result: (result["done"], result["failed"]))(wait_for(vision, job["id"])) == (
        6,
        1,
    )
    result = results(vision, job["id"])
    assert [each["index"] for each in result] == list(range(6))
    assert result[0]["answer"]["predictions"][0]["caption"] == "one two three"
    assert result[0]["filename"] == "0.png"
    assert (result[5]["status"], result[5]["problem"]["code"]) == (422, "media_broken")
    assert vision.client.delete(f"/jobs/{job['id']}").status_code == 204
    assert vision.client.get(f"/jobs/{job['id']}").status_code == 404


def test_a_job_of_lines_mixes_models_tasks_and_images(vision, stub, png) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    lines = [
        {"id": "a", "image": uri},
        {"id": "b", "image": uri, "task": "recognition", "model": "base"},
        {"id": "c", "image": uri, "task": "none"},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    headers = {"content-type": "application/jsonl"}
    answer = vision.client.post("/jobs", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    wait_for(vision, answer.json()["id"])
    result = results(vision, answer.json()["id"])
    assert [each["id"] for each in result] == ["a", "b", "c"]
    assert [each["status"] for each in result] == [200, 200, 404]
    assert result[1]["answer"]["task"] == "recognition"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": "x"}, "text"),
        ({"options": "{}"}, "options"),
        ({"task": "spatial-boxes", "text": "x", "question": "y"}, "question"),
    ],
    ids=str,
)
def test_a_jobs_field_that_nothing_would_read_is_refused_by_name(
    vision, stub, png, fields, code
) -> None:
    jobs_before = vision.client.get("/jobs").json()
    answer = vision.client.post("/jobs", files={"files": ("x", png)}, data=fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert code in answer.json()["detail"]
    assert vision.client.get("/jobs").json() == jobs_before
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    headers = {"content-type": "application/jsonl"}
    line = json.dumps({"image": uri, **fields})
    job = vision.client.post("/jobs", content=line, headers=headers).json()["id"]
    wait_for(vision, job)
    (result,) = results(vision, job)
    assert (result["status"], result["problem"]["code"]) == (422, code)
    assert not stub.requests


def test_a_killed_gateway_goes_on_where_its_results_end(settings_for, stub, png) -> None:
    settings = settings_for(jobs_parallel=1)
    stub.delay = 0.05
    files = [("files", (f"{index}.png", png)) for index in range(8)]
    with started(settings) as gateway:
        job = gateway.client.post("/jobs", files=files).json()["id"]
        until(lambda: gateway.client.get(f"/jobs/{job}").json()["done"] >= 2, 10)
    (path,) = (settings.data_dir / "jobs").rglob("results.jsonl")
    before = path.read_bytes()
    # What a kill leaves when it falls into a write.
    path.write_bytes(before + b'{"index": 7, "sta')
    asked = len(stub.requests)
    with started(settings) as gateway:
        wait_for(gateway, job)
        result = results(gateway, job)
    assert [each["index"] for each in result] == list(range(8))
    assert path.read_bytes().startswith(before)
    assert len(stub.requests) - asked <= 8 - before.count(b"\n")


def test_a_server_that_comes_back_ends_the_job_without_a_failure(start, stub, png, monkeypatch):
    with start() as gateway:
        stub.failures_left = 4
        monkeypatch.setattr("gateway.jobs.POLL_S", 0.1)
        job = gateway.client.post("/jobs", files={"files": ("x", png)}).json()["id"]
        assert wait_for(gateway, job)["failed"] == 0


def test_a_job_that_waits_for_its_server_stops_no_other(start, stub, png) -> None:
    with start(jobs_parallel=1) as gateway:
        stub.failing = {"base"}
        files = {"files": ("x", png)}
        data = {"task": "recognition", "model": "base"}
        waiting = gateway.client.post("/jobs", files=files, data=data).json()["id"]
        until(lambda: stub.requests, 10)
        job = gateway.client.post("/jobs", files=files).json()["id"]
        until(lambda: gateway.client.get(f"/jobs/{job}").json()["state"] == "done", 5)
        # The first one is not given up, and nothing of all jobs runs beside it.
        assert gateway.client.get(f"/jobs/{waiting}").json()["done"] == 0
        assert stub.most_running == 1
        until(lambda: sum(each["model"] == "base" for each in stub.requests) > 1, 10)


def test_a_job_keeps_to_its_keys_rate_and_loses_no_item_to_it(
    start, stub, png, monkeypatch
) -> None:
    monkeypatch.setattr(jobs, "ATTEMPTS", 1)
    with start(rate="2/second") as gateway:
        files = [("files", ("x", png))] * 6
        job = gateway.client.post("/jobs", files=files).json()["id"]
        path = next((gateway.settings.data_dir / "jobs").rglob("job.json"))
        until(lambda: json.loads(path.read_text())["state"] == "done", 30)
        answers = [json.loads(line) for line in (path.parent / jobs.RESULTS).open()]
    assert path.parent.name == job
    assert [each["status"] for each in answers] == [200] * 6


def test_so_many_files_and_jobs_and_no_more(start, stub, png, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS", 1)
    with start(max_job_files=2) as gateway:
        files = [("files", ("x", png))]
        assert gateway.client.post("/jobs", files=files * 3).status_code == 413
        lines = {"content": b"{}\n" * 3, "headers": {"content-type": "application/jsonl"}}
        assert gateway.client.post("/jobs", **lines).status_code == 413
        assert gateway.client.get("/jobs").json() == {"jobs": []}
        assert gateway.client.post("/jobs", files=files * 2).status_code == 202
        assert gateway.client.post("/jobs", files=files).json()["code"] == "jobs"


def test_no_name_leads_to_another_callers_folder(tmp_path) -> None:
    from gateway.errors import Problem
    from gateway.keys import Caller

    store = Store(tmp_path, "session.json")
    alice, bob = (Caller(name, "1/second", 1, 1) for name in ("alice", "bob"))
    folder = store.create(alice, {})
    store.create(bob, {})
    assert store.folder(alice, folder.name) == folder
    for name in (folder.name, f"../{store.owner(alice).name}/{folder.name}", "..", ""):
        with pytest.raises(Problem) as refused:
            store.folder(bob, name)
        assert refused.value.status == 404


def test_what_has_been_kept_long_enough_is_swept(tmp_path) -> None:
    import os

    from gateway.keys import Caller

    store = Store(tmp_path / "sessions", "session.json")
    caller = Caller("alice", "1/second", 1, 1)
    old, new = store.create(caller, {"a": 1}), store.create(caller, {"a": 2})
    os.utime(old / "session.json", (1, 1))
    half = store.owner(caller) / ".0123"
    half.mkdir()
    os.utime(half, (1, 1))
    store.sweep(24)
    assert store.all() == [new]
    assert not half.exists() and not old.exists()


@pytest.fixture
def racing(monkeypatch):
    """Removes the first folder of a store after it was listed, as another replica would."""
    from gateway import store

    def race(name: str) -> None:
        listed = getattr(Store, name)

        def list_and_remove(self, *args):
            folders = listed(self, *args)
            first = folders[0] if name == "all" else folders[0].parent
            store.shutil.rmtree(first)
            return folders

        monkeypatch.setattr(Store, name, list_and_remove)

    return race


@pytest.mark.parametrize("path", ["/sessions", "/jobs"])
def test_what_goes_while_it_is_listed_is_left_out(start, stub, png, racing, path) -> None:
    more = {"files": {"files": ("x", png)}} if path == "/jobs" else {"json": {}}
    with start() as gateway:
        created = [gateway.client.post(path, **more).json()["id"] for _ in range(2)]
        if path == "/jobs":
            for job in created:
                wait_for(gateway, job)
        racing("of")
        answer = gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    assert [each["id"] for each in answer.json()[path[1:]]] == [max(created)]


def test_a_folder_that_goes_while_all_are_swept_keeps_none_of_the_others(tmp_path, racing) -> None:
    import os

    from gateway.keys import Caller

    store = Store(tmp_path, "session.json")
    caller = Caller("alice", "1/second", 1, 1)
    for _ in range(3):
        folder = store.create(caller, {})
        os.utime(folder / "session.json", (1, 1))
    racing("all")
    store.sweep(24)
    assert not list(store.owner(caller).iterdir())


def test_what_is_removed_twice_is_not_there_the_second_time(tmp_path) -> None:
    from gateway.errors import Problem
    from gateway.keys import Caller

    store = Store(tmp_path, "session.json")
    folder = store.create(Caller("alice", "1/second", 1, 1), {})
    store.remove(folder)
    with pytest.raises(Problem) as refused:
        store.remove(folder)
    assert refused.value.status == 404


def test_a_job_at_work_is_not_swept_however_long_it_takes(tmp_path) -> None:
    import os

    from gateway.keys import Caller

    store = Store(tmp_path, "job.json")
    job = store.create(Caller("alice", "1/second", 1, 1), {})
    os.utime(job / "job.json", (1, 1))
    with store.locked(job):
        store.sweep(24)
    assert store.all() == [job]
    store.sweep(24)
    assert store.all() == []


@pytest.fixture(scope="module")
def caching(start):
    with start(cache_mb=1, cache_s=60) as gateway:
        yield gateway


def test_an_equal_greedy_request_is_answered_from_the_cache(caching, stub, png) -> None:
    first = ask_chat(caching, temperature=0)
    second = ask_chat(caching, temperature=0)
    assert first.content == second.content
    assert len(stub.requests) == 1
    for _ in range(2):
        caching.client.post("/predict", files={"files": ("x", png)})
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 1},
        {"temperature": 0, "stream": True},
        {"temperature": 0, "max_tokens": 3},
        {"temperature": 0, "model": "base"},
        {"temperature": 0, "messages": [{"role": "user", "content": "Other"}]},
    ],
    ids=str,
)
def test_any_other_is_asked_anew(caching, stub, change) -> None:
    caching.gateway.cache.memory.clear()
    ask_chat(caching, temperature=0)
    ask_chat(caching, **change)
    assert len(stub.requests) == 2


def test_what_is_not_greedy_is_never_kept(caching, stub) -> None:
    for _ in range(2):
        ask_chat(caching, temperature=0.7)
        ask_chat(caching)
    assert len(stub.requests) == 4


def test_a_new_version_of_the_model_is_asked_anew(caching, stub) -> None:
    caching.gateway.cache.memory.clear()
    ask_chat(caching, temperature=0)
    stub.models[1]["root"] = "/adapters/tiny-lora/v4"
    try:
        until(lambda: caching.gateway.upstreams.models[1].uri == "models:/tiny-lora/4")
        ask_chat(caching, temperature=0)
    finally:
        stub.models[1]["root"] = "/adapters/tiny-lora/v3"
    assert len(stub.requests) == 2


def test_the_cache_is_bounded(caching, stub) -> None:
    stub.tokens = ["x" * 50_000]
    for number in range(40):
        ask_chat(caching, temperature=0, messages=[{"role": "user", "content": str(number)}])
    assert caching.gateway.cache.memory.currsize <= 2**20
    assert len(caching.gateway.cache.memory) > 5


def test_it_is_off_unless_it_is_given_room(vision, stub) -> None:
    for _ in range(2):
        ask_chat(vision, temperature=0)
    assert len(stub.requests) == 2
