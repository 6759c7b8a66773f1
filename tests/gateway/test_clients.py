"""Programs that people have: OpenAI's client, LangChain, curl, and a fuzzer of OpenAPI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from gateway import keys
from tests.gateway.conftest import started
from tests.gateway.test_chat import image


@pytest.fixture(scope="module")
def door(settings_for, tmp_path_factory):
    """A gateway with a key, as people use it."""
    folder = tmp_path_factory.mktemp("door")
    key, entry = keys.new_key("alice")
    (folder / "keys.json").write_text(json.dumps([entry.model_dump(exclude_none=True)]))
    settings = settings_for(api_keys_file=folder / "keys.json", rate="100000/second")
    with started(settings) as gateway:
        gateway.key = key
        yield gateway


class TestOpenai:
    @pytest.fixture
    def client(self, door, stub):
        with openai.OpenAI(base_url=f"{door.url}/v1", api_key=door.key, max_retries=0) as client:
            yield client

    def ask(self, client, content="Hello", **more):
        message = {"role": "user", "content": content}
        return client.chat.completions.create(model="tiny-lora", messages=[message], **more)

    def test_it_asks_and_streams(self, client, stub, png) -> None:
        assert [model.id for model in client.models.list()] == ["base", "tiny-lora"]
        answer = self.ask(client, [image(png), {"type": "text", "text": "What?"}], temperature=0)
        assert answer.choices[0].message.content == "one two three"
        assert answer.usage.total_tokens == 10
        # As programs write them: without a look whether there is a choice.
        pieces = [chunk.choices[0].delta.content for chunk in self.ask(client, stream=True)]
        assert "".join(filter(None, pieces)) == "one two three"
        chunks = list(self.ask(client, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.total_tokens == 10

    def test_it_raises_what_its_users_catch(self, client, door, stub) -> None:
        with pytest.raises(openai.NotFoundError, match="No such model"):
            client.chat.completions.create(model="x", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.UnprocessableEntityError, match="logit_bias"):
            self.ask(client, logit_bias={"1": 1})
        wrong = openai.OpenAI(base_url=f"{door.url}/v1", api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        stub.fault = "status 500"
        with pytest.raises(openai.InternalServerError):
            self.ask(client)
        stub.fault = "cut"
        with pytest.raises(openai.APIError, match="complete"):
            list(self.ask(client, stream=True))


def test_langchain_asks_and_streams(door, stub, png) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        model="tiny-lora", base_url=f"{door.url}/v1", api_key=door.key, temperature=0
    )
    assert chat.invoke("Hello").content == "one two three"
    assert "".join(chunk.content for chunk in chat.stream("Hello")) == "one two three"
    messages = [("human", [image(png), {"type": "text", "text": "What?"}])]
    assert chat.invoke(messages).content == "one two three"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestCurl:
    def curl(self, door, *args: str) -> str:
        command = ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {door.key}"]
        done = subprocess.run([*command, *args], capture_output=True, text=True, check=True)
        return done.stdout

    def test_it_uploads(self, door, stub, formula) -> None:
        result = json.loads(self.curl(door, f"{door.url}/predict", "-F", f"files=@{formula}"))
        assert result["predictions"][0]["filename"] == "0001.png"

    def test_it_uploads_a_large_file_and_waits_for_100_continue(self, door, stub, tmp_path):
        from tests.gateway.conftest import picture

        (tmp_path / "large.png").write_bytes(picture("PNG", (1500, 1500)))
        result = self.curl(
            door, f"{door.url}/predict", "-F", f"files=@{tmp_path}/large.png", "-F", "stream=true"
        )
        assert result.rstrip().split("\n\n")[-1].startswith("event: done")

    def test_it_asks_in_json(self, door, stub) -> None:
        body = json.dumps({"model": "base", "messages": [{"role": "user", "content": "Hi"}]})
        result = self.curl(
            door,
            f"{door.url}/v1/chat/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
        )
        assert json.loads(result)["choices"][0]["message"]["content"] == "one two three"


def test_the_page_of_the_interface_needs_no_script_and_no_way_out(door) -> None:
    page = door.client.get("/docs")
    assert "script" not in page.text.lower()
    assert "http" not in page.text.lower().replace("https://", "http://").split("<h2>")[0]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in door.client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text


def test_docs_can_be_left_out(start) -> None:
    with start(docs=False) as gateway:
        assert gateway.client.get("/docs").status_code == 404
        assert gateway.client.get("/openapi.json").status_code == 404


@pytest.mark.slow
def test_a_fuzzer_finds_no_failure_and_no_status_that_is_not_documented(door, stub, tmp_path):
    pytest.importorskip("schemathesis")
    auth = {"Authorization": f"Bearer {door.key}"}
    # What its addresses are about, so that it gets beyond "there is no such thing".
    content = Path(__file__).parents[2] / "test_data/vision/images/0001.png"
    session = door.client.post("/sessions", json={}, headers=auth).json()["id"]
    files = {"files": ("x.png", content.read_bytes())}
    asked = {"data": {"session": session}, "files": files, "headers": auth}
    predicted = door.client.post("/predict", **asked).json()
    job = door.client.post("/jobs", files=files, headers=auth).json()["id"]
    known = {"task": "recognition", "session": session, "job": job}
    known["sha256"] = predicted["predictions"][0]["image"]["sha256"]
    lines = [f'"path.{name}" = "{value}"' for name, value in known.items()]
    (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines, ""]))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,"
    checks += "response_schema_conformance,unsupported_method,ignored_auth"
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{door.url}/openapi.json",
        "--checks",
        checks,
        "--header",
        f"Authorization: Bearer {door.key}",
        "--max-examples",
        "40",
        "--phases",
        "examples,coverage,fuzzing",
        "--seed",
        "1",
        "--continue-on-failure",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
