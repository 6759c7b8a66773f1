"""The people at the desk: keys of the gateway's file, with their roles."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from gateway import keys
from loraline.errors import TryAgain, UserError
from loraline.process import person

REVIEWER, TRAINER = "reviewer", "trainer"


class Turned(Exception):
    """Somebody without a key, or without the role for what they asked."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True)
class Person:
    """Who asks; the name is what the audit trail says."""

    name: str
    roles: frozenset[str]

    def expect(self, role: str) -> None:
        if role not in self.roles:
            raise Turned(403, f"{self.name} has not the role of a {role}; an operator gives it.")


class People:
    """Authenticates. Without a file, only this machine reaches the desk; its user may do all."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        if file is not None:
            keys.read(file)

    def who(self, request: Request) -> Person:
        if self.file is None:
            return Person(person.name(), frozenset((REVIEWER, TRAINER)))
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
        try:
            # The file is small and read seldom, so a removed role is gone at once.
            entries = keys.read(self.file)
        except UserError as error:
            raise TryAgain(str(error)) from error
        for entry in entries:
            if scheme.lower() == "bearer" and secrets.compare_digest(entry.sha256, digest):
                return Person(entry.name, frozenset(entry.roles))
        raise Turned(401, "Send a valid key as Authorization: Bearer KEY.")
