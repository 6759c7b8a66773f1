from __future__ import annotations

import pytest

from loraline.errors import TryAgain
from loraline.records import from_prompt
from loraline.serving.client import Server

ROW = {"record": from_prompt("{question}", "Who?", "")}


@pytest.fixture(scope="module")
def verify(script):
    return script("steps/verify_serving.py")


def test_a_row_that_the_server_refuses_is_an_answer_that_says_so(verify, answering) -> None:
    result = verify.attempt(Server(answering(400, "too long")), "tiny-lora", 5, ROW)
    assert result.tokens == result.prompt == []
    assert result.refusal.endswith("/v1/chat/completions answers 400: too long")


def test_a_server_that_fails_at_a_row_gives_no_verdict(verify, answering) -> None:
    with pytest.raises(TryAgain, match="answers 500: engine is dead"):
        verify.attempt(Server(answering(500, "engine is dead")), "tiny-lora", 5, ROW)
