"""`loraline chat`: questions on standard input, answers on standard output, the rest beside it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from loraline.errors import TryAgain, UserError
from loraline.serving.client import Server
from loraline_cli.chat import Answer, Conversation, opening
from loraline_cli.main import main
from tests.gateway.conftest import picture


def chat(url: str, *lines: str, options: tuple[str, ...] = ()) -> Result:
    given = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(main, ["chat", "--url", url, *options], input=given)


def test_a_picture_in_the_folder_of_nobody_is_one_sentence(vision, stub) -> None:
    talk = chat(vision.url, "/image ~nobody-of-this-name/scan.png", "Read it")
    assert talk.exit_code == 0, talk.exception
    assert "/image '~nobody-of-this-name/scan.png' cannot be read" in talk.stderr


def conversations(stub) -> list[list[tuple[str, str]]]:
    return [
        [(turn["role"], turn["content"]) for turn in request["messages"]]
        for request in stub.requests
    ]


def test_the_first_question_is_put_as_in_training_and_the_rest_goes_on_from_it(text, stub) -> None:
    talk = chat(text.url, "Where is Ada?", "", "And Bo?", "/new", "Who?", "/quit", "never")
    assert talk.exit_code == 0, talk.output
    assert talk.stdout.count("one two three\n") == 3
    assert (
        f"tiny-lora at {text.url}: a first question goes into the prompt of its training, "
        "'Answer in a few words. {question}'\n"
        "A later question goes on from the answers before it. If the training had single "
        "questions, type /new before each.\n"
    ) in talk.stderr
    first = ("user", "Answer in a few words. Where is Ada?")
    assert conversations(stub) == [
        [first],
        [first, ("assistant", "one two three"), ("user", "And Bo?")],
        [("user", "Answer in a few words. Who?")],
    ]
    assert {request["max_tokens"] for request in stub.requests} == {64}
    assert {request["model"] for request in stub.requests} == {"tiny-lora"}


def test_a_picture_goes_with_the_next_question(vision, stub, tmp_path) -> None:
    (tmp_path / "my scan.png").write_bytes(picture())
    talk = chat(vision.url, f"/image {tmp_path / 'my scan.png'}", "Read it", "/image none.png")
    assert talk.exit_code == 0, talk.output
    (content,) = [turn["content"] for turn in stub.requests[0]["messages"]]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert "chat: /image 'none.png' cannot be read: No such file or directory" in talk.stderr


def test_a_question_about_a_picture_must_not_hold_a_place_of_another(
    vision, stub, tmp_path
) -> None:
    (tmp_path / "scan.png").write_bytes(picture())
    show = f"/image {tmp_path / 'scan.png'}"
    talk = chat(vision.url, show, "See <image>?", "Read it", "See <image>?")
    assert talk.exit_code == 0, talk.output
    assert talk.stderr.count("chat: a question about a picture must not contain <image>") == 1
    assert len(stub.requests) == 2, "the picture waits for the next question"


def test_a_prompt_without_a_place_for_a_question_is_announced() -> None:
    lines = opening({"id": "tiny-lora", "prompt": "Write it as LaTeX."}, "here")
    assert lines.startswith(
        "tiny-lora at here: the prompt of its training, 'Write it as LaTeX.', has no place for a "
        "question, so that it takes the place of a first one\n"
    )


def test_a_server_alone_is_asked_as_it_is(stub, stub_url) -> None:
    talk = chat(stub_url, "Hello", options=("--max-tokens", "5"))
    assert (
        f"tiny-lora at {stub_url}: a question goes to it as you type it, since no prompt of a "
        "training is known here\n"
    ) in talk.stderr
    assert conversations(stub) == [[("user", "Hello")]]
    assert stub.requests[0]["max_tokens"] == 5


def test_a_model_that_was_trained_on_bare_questions_is_said_to_be_asked_so() -> None:
    said = opening({"id": "tiny-lora", "prompt": "{question}"}, "here")
    assert said.startswith(
        "tiny-lora at here: a question goes to it as you type it, as in its training"
    )


def test_an_answer_is_said_as_it_comes(stub, stub_url) -> None:
    stub.fault = "split"
    said: list[str] = []
    talk = Conversation("tiny-lora", "{question}", 5)
    assert talk.ask(Server(stub_url), "Hello", said.append) == "one two three"
    assert said == ["", "one", " two", " three", "", "\n"]


@pytest.mark.parametrize("fault", ["cut clean", "garbage stream"])
def test_an_answer_that_breaks_off_is_no_part_of_the_conversation(
    text, stub, stub_url, fault
) -> None:
    stub.fault = fault
    talk = chat(stub_url, "Hello", "Again")
    assert talk.stderr.count("answers a question in another form: it breaks off") == 2
    assert conversations(stub) == [[("user", "Hello")], [("user", "Again")]]


def test_an_answer_that_the_gateway_gives_up_ends_with_its_sentence(text, stub) -> None:
    stub.fault = "cut"
    talk = chat(text.url, "Hello", "Again")
    assert talk.stdout == "one\none\n", "the text so far, and a line's end"
    sentence = "The model's server ended before its answer was complete."
    assert talk.stderr.count(f"chat: {text.url} breaks off: {sentence}") == 2, talk.stderr
    assert conversations(stub)[1] == [("user", "Answer in a few words. Again")]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        ({"message": "Too busy.", "type": "rate_limit_error", "code": "rate"}, TryAgain),
        ({"message": "Too busy.", "type": "server_error", "code": "cut"}, TryAgain),
        ({"message": "Too busy.", "type": "InternalServerError", "code": 500}, TryAgain),
        ({"message": "Too long.", "type": "invalid_request_error", "code": "long"}, UserError),
        ({"message": "Too long.", "type": "BadRequestError", "code": 400}, UserError),
        ({"message": None}, UserError),
        ("Too long.", UserError),
    ],
)
def test_an_error_of_a_stream_is_a_mistake_or_worth_another_try(error, raised) -> None:
    answer = Answer([].append)
    event = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    answer.hear(event[:9])
    answer.hear(event[9:])
    with pytest.raises(raised, match=r"here breaks off: (Too (busy|long)|it does not say why)"):
        answer.end("here")


def test_what_a_server_refuses_leaves_the_conversation(text, stub) -> None:
    stub.fault = "status 400 long"
    talk = chat(text.url, "Hello")
    assert talk.exit_code == 0
    assert f"chat: {text.url}/v1/chat/completions answers 4" in talk.stderr
    assert talk.stdout == ""


def test_a_model_that_is_not_served_is_refused(text) -> None:
    talk = chat(text.url, "Hello", options=("--model", "other"))
    assert talk.exit_code == 2
    assert "--model 'other' is not served at " in talk.stderr
    assert "tiny-lora" in talk.stderr


def test_nobody_there_is_one_sentence() -> None:
    talk = chat("http://127.0.0.1:9", "Hello")
    assert talk.exit_code == 75
    assert len(talk.stderr.strip().splitlines()) == 1
