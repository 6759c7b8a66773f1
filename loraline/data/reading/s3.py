"""Objects under an S3 prefix, fetched one by one: in ranges, taken up where they broke, checked.

Credentials, region and endpoint come from the environment, as boto3 reads them
(AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and so on); without an endpoint, MLflow's is used.
"""

from __future__ import annotations

import base64
import hashlib
import os
import posixpath
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraline.addresses import redacted
from loraline.data.checks import BadRow
from loraline.data.reading import s3_errors
from loraline.errors import TryAgain, UserError

RANGE = 16 * 2**20
"""Bytes of one ranged read; a broken connection costs at most what was not yet written of it."""

ATTEMPTS = 5
"""Reads of one object in a row that bring nothing before the service counts as gone."""

BUFFER = 2**20


@dataclass
class Bucket:
    """A prefix of a bucket and its objects, with a local folder that keeps what was fetched."""

    uri: str
    name: str
    prefix: str
    folder: Path
    objects: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size in bytes and ETag by name under the prefix."""

    only: str | None = None
    """The one object that rows are read from, if the address is an object's; a prompt and media may
    lie beside it."""

    _client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Clients hold sockets; each worker makes its own.
        return self.__dict__ | {"_client": None}

    @classmethod
    def connect(cls, uri: str, folder: Path) -> Bucket:
        """List what is under `s3://bucket/prefix`, which may also be one object."""
        name, _, prefix = uri.removeprefix("s3://").partition("/")
        if not name:
            raise UserError(f"--data {uri!r}: expected s3://bucket/prefix")
        bucket = cls(
            uri, name, prefix if not prefix or prefix.endswith("/") else f"{prefix}/", folder
        )
        bucket.objects = bucket.listed()
        if not bucket.objects and prefix:
            bucket.prefix = posixpath.dirname(prefix) and f"{posixpath.dirname(prefix)}/"
            bucket.only = posixpath.basename(prefix)
            bucket.objects = bucket.listed()
        if not bucket.objects or bucket.only not in (None, *bucket.objects):
            raise UserError(f"{uri} holds nothing")
        return bucket

    @property
    def client(self) -> Any:
        """boto3's client, made at the first use in each process."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            from loraline.tracking.settings import Settings

            endpoint_variable = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
                "AWS_ENDPOINT_URL"
            )
            config = Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "max_attempts": 3},
                response_checksum_validation="when_required",
            )
            endpoint = endpoint_variable or Settings().s3_endpoint or None
            # A session of its own: the default one keeps the credentials it saw first.
            session = boto3.session.Session()
            self._client = session.client("s3", endpoint_url=endpoint, config=config)
        return self._client

    def listed(self) -> dict[str, tuple[int, str]]:
        """Size and ETag of each object under the prefix; names that leave it are not taken."""
        objects = {}
        try:
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.name, Prefix=self.prefix):
                if not page.keys() & {"Name", "KeyCount", "Contents"}:
                    raise UserError(f"{self.place} does not speak S3: it answers with no list")
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self.prefix)
                    if key and not key.endswith("/") and posixpath.normpath(f"/{key}") == f"/{key}":
                        objects[key] = (item["Size"], item["ETag"].strip('"'))
        except Exception as error:
            raise self.explained(error) from error
        return objects

    def has(self, name: str) -> bool:
        return name in self.objects

    def fetch(self, name: str) -> Path:
        """Local path of an object, brought here at its first use.

        Raises BadRow when there is none of this name, TryAgain when the service goes away.
        """
        from filelock import FileLock

        if name not in self.objects:
            raise BadRow("media_missing", f"{name[:80]!r} is not among the objects of {self.uri}")
        # What an interrupted run fetched is taken while the object is the same.
        etag = hashlib.sha256(self.objects[name][1].encode()).hexdigest()[:16]
        target = self.folder / etag / name
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".locks" / hashlib.sha256(name.encode()).hexdigest()
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not target.is_file():
                self.download(name, target)
        return target

    def download(self, name: str, target: Path, *, again: bool = False) -> None:
        """Bring one object in ranges; a part that an interrupted run left is continued.

        One that arrives with another checksum is fetched `again`, once.
        """
        size, etag = self.objects[name]
        part = target.with_name(f".{target.name}.part")
        idle = 0
        with part.open("ab") as file:
            while (have := file.tell()) < size:
                try:
                    self.read_range(name, etag, have, min(have + RANGE, size), file)
                except Exception as error:
                    failure = self.explained(error)
                    file.flush()
                    idle = idle + 1 if file.tell() == have else 0
                    if isinstance(failure, UserError) or idle >= ATTEMPTS:
                        raise failure from error
        try:
            self.verify(name, part)
        except UserError:
            part.unlink()
            if again:
                raise
            # It may have been changed on its way here; what was stored so comes so again.
            self.download(name, target, again=True)
        else:
            part.replace(target)

    def read_range(self, name: str, etag: str, start: int, stop: int, file: Any) -> None:
        """Append bytes `start` to `stop` of an object to a file, if it still has this ETag."""
        answer = self.client.get_object(
            Bucket=self.name,
            Key=self.prefix + name,
            Range=f"bytes={start}-{stop - 1}",
            IfMatch=f'"{etag}"',
        )
        for block in answer["Body"].iter_chunks(BUFFER):
            file.write(block)

    def verify(self, name: str, path: Path) -> None:
        """Hold a file against the object's own checksum, or against an ETag that is an MD5."""
        try:
            head = self.client.head_object(
                Bucket=self.name, Key=self.prefix + name, ChecksumMode="ENABLED"
            )
        except Exception as error:
            raise self.explained(error) from error
        size, etag = self.objects[name]
        checksum, expected = checksums(path, head, etag, size)
        if checksum != expected:
            raise UserError(
                f"s3://{self.name}/{self.prefix}{name} arrived with checksum {checksum}, "
                f"expected {expected}"
            )

    @property
    def place(self) -> str:
        """The prefix and its service, for messages."""
        return (
            f"{self.uri} at {redacted(self._client.meta.endpoint_url)}"
            if self._client
            else self.uri
        )

    def explained(self, error: Exception) -> UserError | TryAgain:
        """What an error of boto3 means for the user."""
        return s3_errors.explained(error, self.place, connected=self._client is not None)


def checksums(path: Path, head: Mapping[str, Any], etag: str, size: int) -> tuple[str, str]:
    """A file's checksum and the one that it should have, by the strongest that `head` offers.

    `head` is S3's answer to HeadObject. Without a checksum of the whole object, and with an ETag
    that is no MD5 (of an upload in parts, or encrypted by KMS), sizes in bytes are all there is.
    """
    of_whole_object = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    if of_whole_object and "-" not in (expected := head.get("ChecksumSHA256", "-")):
        return base64.b64encode(digest(path, "sha256")).decode(), expected
    if of_whole_object and "-" not in (expected := head.get("ChecksumCRC32", "-")):
        return base64.b64encode(crc32(path).to_bytes(4, "big")).decode(), expected
    if len(etag) == 32 and "-" not in etag and "SSEKMSKeyId" not in head:
        return digest(path, "md5").hex(), etag
    return str(path.stat().st_size), str(size)


def digest(path: Path, algorithm: str) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).digest()


def crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BUFFER):
            value = zlib.crc32(block, value)
    return value
