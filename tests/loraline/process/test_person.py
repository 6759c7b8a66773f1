"""Who runs a process: by the environment, by the system, or by a number that nobody named."""

from __future__ import annotations

import os
import pwd

import pytest

from loraline.process import person


def test_a_person_has_the_name_of_the_environment_or_of_the_system_or_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USER", "ada")
    assert person.name() == "ada"
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert person.name() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert person.name() == "somebody without a name (user ID 54321)"
