"""Addresses are shown without what nobody may read, however they were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraline.addresses import redacted, scrubbed


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("http://user:pw@mlflow:5000/path", "http://mlflow:5000/path"),
        ("http://user:tok/en@mlflow:5000", "http://mlflow:5000"),
        ("http://u:p@ssw0rd@h", "http://h"),
        ("postgresql://h/db?user=u&password=hunter2", "postgresql://h/db"),
        ("postgresql+psycopg2://u:p@h1,h2:5432/db", "postgresql+psycopg2://h1,h2:5432/db"),
        ("postgresql://h/db?password=p@ss", "postgresql://…"),
        ("http://u:p?w@h", "http://…"),
        ("http://u:p#w@h", "http://…"),
        ("http://h/x#token", "http://h/x"),
        ("sqlite:////home/me/mlruns/mlflow.db", "sqlite:////home/me/mlruns/mlflow.db"),
        ("u:pw@h:5000", "h:5000"),
        ("http://h/a b secret", "http://h/a…"),
        ("http://u:p w@h/x", "http://h/x"),
        ("http://h/a\nsecret", "http://h/a…"),
        ("", ""),
    ],
)
def test_what_is_shown_of_an_address(address: str, expected: str) -> None:
    assert redacted(address) == expected


def test_a_webhook_is_shown_without_its_path() -> None:
    assert redacted("https://hooks.example/services/T0/B0/x", path=False) == "https://hooks.example"


CANARY = "canary2718"


@given(
    user=st.text(st.characters(codec="utf-8"), max_size=6),
    before=st.text(st.sampled_from("/@:?#% ab"), max_size=4),
    after=st.text(st.sampled_from("/@:?#% ab"), max_size=4),
)
def test_no_password_is_shown_whatever_is_in_it(user: str, before: str, after: str) -> None:
    assert CANARY not in redacted(f"http://{user}:{before}{CANARY}{after}@host:1/db")
    assert CANARY not in redacted(f"postgresql://host/db?password={before}{CANARY}{after}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"http://me:{CANARY}@h:5000"),
        ("MLFLOW_TRACKING_URI", f"postgresql://h/db?password={CANARY}"),
        ("LORALINE_WEBHOOK_URL", f"https://hooks.example/{CANARY}/x"),
        ("VLLM_API_KEY", CANARY),
        ("MLFLOW_TRACKING_PASSWORD", CANARY),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
    ],
)
def test_a_text_is_told_without_the_environments_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = scrubbed(f"cannot parse {value}: {CANARY} is no port; /{CANARY}/x")
    if name != "LORALINE_WEBHOOK_URL":
        assert CANARY not in message
    assert value not in message
    assert message.startswith("cannot parse ")
