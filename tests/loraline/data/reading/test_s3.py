"""S3 over a real socket: two servers, and a line to them that can be cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from made_data import kept, picture
from ports import free_port

from loraline.data import workplace
from loraline.data.checks import BadRow
from loraline.data.reading import s3
from loraline.errors import TryAgain, UserError

ROWS = [{"question": f"What is {n}?", "answer": f"it is {n}"} for n in range(40)]
BIG = hashlib.shake_256(b"big").digest(3_000_000)


@pytest.fixture(scope="module", params=["moto", "versitygw"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Port of an S3 server that holds rows, images and a large object.

    moto's server is there always, and a real one, the Versity gateway, where it is on the PATH.
    """
    port = free_port()
    if request.param == "moto":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    elif result := shutil.which("versitygw"):
        home = tmp_path_factory.mktemp("gateway")
        identity = ["--access", "key", "--secret", "secret", "--port", f"127.0.0.1:{port}"]
        command = [result, "--quiet", *identity, "posix", str(home)]
    else:
        pytest.skip("no versitygw on the PATH")
    with serving(command, port), pytest.MonkeyPatch.context() as patch:
        credentials(patch)
        fill(boto3.session.Session().client("s3", endpoint_url=f"http://127.0.0.1:{port}"))
        yield port


@contextlib.contextmanager
def serving(command: list[str], port: int, **environment: str) -> Iterator[None]:
    """A server process that answers on a port of the loopback."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=quiet, stderr=quiet
    )
    try:
        for _ in range(150):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the server did not start")
        yield
    finally:
        process.terminate()
        process.wait()


def fill(client: Any) -> None:
    client.create_bucket(Bucket="data")
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    client.put_object(Bucket="data", Key="text/train.jsonl", Body=lines)
    client.put_object(Bucket="data", Key="text/prompt.txt", Body="Say: {question}")
    with contextlib.suppress(ClientError):
        # A real server refuses such a name, others may not.
        client.put_object(Bucket="data", Key="text/../../escape.jsonl", Body=lines)
    for number in range(3):
        client.put_object(Bucket="data", Key=f"images/a/{number}.png", Body=picture(number))
    names = [*(f"a/{n}.png" for n in range(3)), "../text/train.jsonl", "a/gone.png"]
    pairs = (json.dumps({"file_name": name, "text": name}) for name in names)
    client.put_object(Bucket="data", Key="images/metadata.jsonl", Body="\n".join(pairs))
    client.put_object(Bucket="data", Key="images/prompt.txt", Body="Read.")
    client.put_object(Bucket="data", Key="big/big.bin", Body=BIG, ChecksumAlgorithm="SHA256")


def credentials(patch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)


@pytest.fixture(autouse=True)
def endpoint(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server}")


class Line:
    """A TCP proxy to the server that cuts each of its first connections after some bytes.

    With `ends` it answers nothing after the last of them, as a server that has stopped.
    """

    def __init__(self, port: int, cuts: int, after: int, ends: bool) -> None:
        self.target, self.cuts, self.after, self.served = port, cuts, after, 0
        self.ends = ends
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self.pump, args=(client, upstream), daemon=True).start()
                threading.Thread(target=self.reply, args=(upstream, client), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                target.sendall(block)

    def reply(self, source: socket.socket, target: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                if self.ends and self.served == self.cuts:
                    break
                if sent + len(block) > self.after and self.served < self.cuts:
                    self.served += 1
                    if self.ends:
                        self.close()
                    target.sendall(block[: self.after - sent])
                    break
                target.sendall(block)
                sent += len(block)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # A thread that waits in accept holds a listener that is only closed.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def line(server: int, monkeypatch: pytest.MonkeyPatch):
    opened: list[Line] = []

    def make(cuts: int, after: int = 400_000, *, ends: bool = False) -> Line:
        opened.append(Line(server, cuts, after, ends))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{opened[-1].port}")
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_dataset_is_read_from_a_prefix(prepare) -> None:
    merged = prepare("s3://data/text/")
    assert kept(merged)[0].messages == (("user", "Say: What is 0?"), ("assistant", "it is 0"))
    assert len(kept(merged)) == 40
    assert merged.place(3) == "s3://data/text/train.jsonl line 4"


def test_a_dataset_may_be_one_object_with_its_prompt_and_media_beside_it(prepare) -> None:
    merged = prepare("s3://data/text/train.jsonl")
    assert len(kept(merged)) == 40
    assert kept(merged)[0].question == "Say: What is 0?"
    merged = prepare(
        "s3://data/images/metadata.jsonl", modality="vision", on=("media_missing=drop",)
    )
    assert [record.images[0] for record in kept(merged)] == [picture(n) for n in range(3)]


def test_images_come_one_by_one_and_only_from_the_prefix(prepare) -> None:
    merged = prepare("s3://data/images", modality="vision", on=("media_missing=drop",))
    assert [record.images[0] for record in kept(merged)] == [picture(n) for n in range(3)]
    assert merged.counts == {"media_missing drop": 2}
    clauses = [example["clause"] for example in merged.examples]
    assert "lies outside of s3://data/images" in clauses[0]
    assert "'a/gone.png' is not among the objects" in clauses[1]


def test_images_may_be_named_from_the_prefix_as_from_a_folder(prepare) -> None:
    client = boto3.session.Session().client("s3")
    row = {"image": "pictures/0.png", "question": "a", "answer": "b"}
    client.put_object(Bucket="data", Key="deep/rows/train.jsonl", Body=json.dumps(row))
    client.put_object(Bucket="data", Key="deep/pictures/0.png", Body=picture(0))
    (record,) = kept(prepare("s3://data/deep", modality="vision"))
    assert record.images == (picture(0),)


def test_objects_with_names_that_climb_are_not_taken(tmp_path: Path) -> None:
    bucket = s3.Bucket.connect("s3://data/text", tmp_path)
    assert set(bucket.objects) == {"train.jsonl", "prompt.txt"}
    with pytest.raises(BadRow, match="is not among the objects"):
        bucket.fetch("../../escape.jsonl")


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path: Path, line) -> None:
    cut = line(cuts=4)
    bucket = s3.Bucket.connect("s3://data/big", tmp_path)
    assert bucket.fetch("big.bin").read_bytes() == BIG
    assert cut.served == 4


def test_a_download_that_was_killed_goes_on(tmp_path: Path, line, monkeypatch) -> None:
    bucket = s3.Bucket.connect("s3://data/big", tmp_path)
    monkeypatch.setattr(s3, "RANGE", 2**20)
    starts = []
    read_range = s3.Bucket.read_range

    def cut_off(self, name, etag, start, stop, file) -> None:
        starts.append(start)
        if len(starts) == 2:
            raise KeyboardInterrupt
        read_range(self, name, etag, start, stop, file)

    monkeypatch.setattr(s3.Bucket, "read_range", cut_off)
    with pytest.raises(KeyboardInterrupt):
        bucket.fetch("big.bin")
    assert not list(tmp_path.rglob("big.bin"))
    again = s3.Bucket.connect("s3://data/big", tmp_path)
    assert again.fetch("big.bin").read_bytes() == BIG
    assert starts == [0, 2**20, 2**20, 2**21]


def test_a_server_that_stops_in_mid_transfer_is_try_again(tmp_path: Path, line) -> None:
    line(cuts=1, after=700_000, ends=True)
    bucket = s3.Bucket.connect("s3://data/big", tmp_path)
    with pytest.raises(TryAgain, match=r"s3://data/big at http://127.0.0.1:\d+ does not answer"):
        bucket.fetch("big.bin")
    assert not list(tmp_path.rglob("big.bin"))


def test_an_absent_server_is_try_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match=r"s3://data/text at http://127.0.0.1:9 does not answer"):
        s3.Bucket.connect("s3://data/text", tmp_path)


def test_what_arrives_otherwise_than_it_was_stored_is_refused(tmp_path: Path, monkeypatch) -> None:
    bucket = s3.Bucket.connect("s3://data/big", tmp_path)
    read_range = s3.Bucket.read_range

    def flip(self, name, etag, start, stop, file) -> None:
        read_range(self, name, etag, start, stop, file)
        file.truncate(file.tell() - 1)
        file.write(b"x")

    monkeypatch.setattr(s3.Bucket, "read_range", flip)
    with pytest.raises(UserError, match=r"big.bin arrived with checksum .*, expected "):
        bucket.fetch("big.bin")
    assert not [file for file in tmp_path.rglob("*big.bin*") if file.is_file()]


def test_what_was_changed_on_its_way_is_fetched_again(tmp_path: Path, monkeypatch) -> None:
    bucket = s3.Bucket.connect("s3://data/big", tmp_path)
    read_range = s3.Bucket.read_range
    flips = iter([True])

    def flip_once(self, name, etag, start, stop, file) -> None:
        read_range(self, name, etag, start, stop, file)
        if next(flips, False):
            file.truncate(file.tell() - 1)
            file.write(b"x")

    monkeypatch.setattr(s3.Bucket, "read_range", flip_once)
    assert bucket.fetch("big.bin").stat().st_size == bucket.objects["big.bin"][0]


PAGE = "<html><body>Welcome</body></html>"


def test_a_server_that_is_no_s3_is_the_users_mistake(
    tmp_path: Path, monkeypatch, answering
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", answering(200, PAGE))
    with pytest.raises(UserError, match="does not speak S3"):
        s3.Bucket.connect("s3://data/text", tmp_path)


def test_a_redirect_is_the_users_to_mend(tmp_path: Path, monkeypatch, answering) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", answering(301, ""))
    with pytest.raises(UserError, match=r"answers with a redirect .*, which is not followed"):
        s3.Bucket.connect("s3://data/text", tmp_path)


@pytest.mark.parametrize("address", ["not a url", "http://somebody:canary@[x"])
def test_an_endpoint_that_is_no_address_is_the_users_mistake(
    tmp_path: Path, monkeypatch, address: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(UserError) as error:
        s3.Bucket.connect("s3://data/text", tmp_path)
    assert "canary" not in str(error.value)


def test_an_endpoint_is_shown_without_its_password(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://somebody:canary@127.0.0.1:9")
    with pytest.raises(TryAgain) as error:
        s3.Bucket.connect("s3://data/text", tmp_path)
    assert "canary" not in str(error.value).partition(" does not answer")[0]


def test_an_object_that_changes_while_it_is_read_is_try_again(tmp_path: Path) -> None:
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket="data", Key="changing/a.jsonl", Body="old")
    bucket = s3.Bucket.connect("s3://data/changing", tmp_path)
    client.put_object(Bucket="data", Key="changing/a.jsonl", Body="new")
    with pytest.raises(TryAgain, match="an object was changed while it was read"):
        bucket.fetch("a.jsonl")


def test_shares_of_other_versions_do_not_fit_together(prepare) -> None:
    client = boto3.session.Session().client("s3")
    identities = []
    for name in ("a", "b", "b"):
        line = json.dumps({"question": name, "answer": "x"})
        client.put_object(Bucket="data", Key="shares/train.jsonl", Body=line)
        identities.append(workplace.work_identity(prepare("s3://data/shares").work))
    assert identities[0] != identities[1] == identities[2]


def test_an_object_that_changed_since_the_interruption_is_fetched_again(tmp_path: Path) -> None:
    client = boto3.session.Session().client("s3")
    for content in ("old", "new"):
        client.put_object(Bucket="data", Key="changed/a.jsonl", Body=content)
        bucket = s3.Bucket.connect("s3://data/changed", tmp_path)
        assert bucket.fetch("a.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://nobody/here", "s3://nobody/here at .* no such bucket or object"),
        ("s3://data/nothing", "s3://data/nothing holds nothing"),
        ("s3://data/text/gone.jsonl", "s3://data/text/gone.jsonl holds nothing"),
        ("s3://", r"expected s3://bucket/prefix"),
        ("s3://UPPER_case!/x", "Invalid bucket name"),
    ],
)
def test_what_is_not_there_is_the_users_mistake(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        s3.Bucket.connect(uri, tmp_path)


def test_no_credentials_are_said(tmp_path: Path, monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        s3.Bucket.connect("s3://data/text", tmp_path)


def test_wrong_credentials_are_said(tmp_path: Path, server: int, request, monkeypatch) -> None:
    with contextlib.ExitStack() as stack:
        if "moto" in request.node.name:
            # One that looks at who asks, from its first request on.
            server = free_port()
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server)]
            stack.enter_context(serving(command, server, INITIAL_NO_AUTH_ACTION_COUNT="0"))
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        with pytest.raises(UserError, match="refuses these credentials"):
            s3.Bucket.connect("s3://data/text", tmp_path)


def test_a_wrong_secret_is_said(tmp_path: Path, request, monkeypatch) -> None:
    if "moto" in request.node.name:
        pytest.skip("moto takes any secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"refuses these credentials \(SignatureDoesNotMatch\)"):
        s3.Bucket.connect("s3://data/text", tmp_path)
