"""/predict: the adapter is asked as it was trained and measured, the original bytes, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import core, documented, uploads
from gateway import exchange as exchanges
from gateway.answering import respond
from gateway.core import Gateway, RateLimited
from gateway.errors import Problem
from gateway.images import Picture
from gateway.keys import Caller
from gateway.served import Model
from gateway.sessions import Keeper
from gateway.uploads import Form
from loraline.contract import Contract
from loraline.records import TAGS, from_prompt
from loraline.serving.client import request as measured_request

router = APIRouter(tags=["Adapter"])

QUESTION = "{question}"

FIELDS = {
    "question": "Goes into the adapter's prompt; leave it out where the prompt has none.",
    "model": "Name or role of a model; by default the adapter.",
    "max_tokens": "Longest answer in tokens; by default and at most the contract's.",
    "stream": "true for server-sent events.",
    "token_ids": "true to get the answer's tokens, too.",
    "session": "Session that keeps question and answer.",
}
ERRORS = (400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507)


@router.post(
    "/predict",
    responses=documented.problems(*ERRORS)
    | documented.answer(*documented.STREAMED, form=documented.PredictAnswer),
    openapi_extra=documented.form_body(FIELDS),
)
async def predict(request: Request, caller: RateLimited) -> Response:
    """Ask the adapter about each image, or a text adapter its question, with the trained prompt."""
    gateway, exchange = core.of(request), exchanges.of(request)
    with gateway.admission.upload_slot():
        async with uploads.form(request, set(FIELDS), max_files=gateway.settings.max_files) as form:
            parsed = await read(gateway, form, caller)
    exchange.digests += parsed.digests
    keeper = Keeper(
        gateway.sessions, caller, form.text("session"), "predict", parsed.question, parsed.pictures
    )
    await keeper.check()
    return await respond(request, gateway, parsed, caller, keeper.keep, form.flag("stream"))


@dataclass
class Predict:
    """A parsed request: one body for the server for each image, as verify_serving builds it."""

    model: Model
    question: str
    names: Sequence[str | None]
    pictures: Sequence[Picture]
    max_tokens: int
    token_ids: bool = False

    @property
    def count(self) -> int:
        return max(1, len(self.pictures))

    @property
    def digests(self) -> list[str]:
        return [picture.sha256 for picture in self.pictures]

    def body(self, index: int) -> dict[str, Any]:
        """The request about one image, byte for byte what verify_serving sends."""
        image = self.pictures[index].content if self.pictures else None
        record = from_prompt(contract_of(self.model).prompt, self.question, "", image)
        body = measured_request(self.model.name, record, self.max_tokens)
        return body | {"return_token_ids": True} if self.token_ids else body

    async def result(self, index: int, text: str, choice: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "image_index": index,
            "filename": self.names[index] if self.pictures else None,
            "caption": text.strip(),
            "finish_reason": choice.get("finish_reason"),
        }
        if self.pictures:
            answer["image"] = sizes(self.model, self.pictures[index])
        if self.token_ids:
            answer["token_ids"] = choice.get("token_ids")
        if choice.get("finish_reason") == "length":
            answer["notes"] = ["The answer is cut: it reached the most tokens."]
        return answer

    def document(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        return {"predictions": results}


async def read(gateway: Gateway, form: Form, caller: Caller, name: str | None = None) -> Predict:
    """The request of a form, to the model of that name or to the form's model."""
    model = gateway.upstreams.model(name or form.text("model") or None, caller)
    contract = contract_of(model)
    question = form.fields.get("question", "")
    check(contract, question, bool(form.files))
    return Predict(
        model,
        question,
        [upload.name for upload in form.files],
        [await upload.picture(gateway.settings) for upload in form.files],
        max_tokens(form.text("max_tokens"), contract.max_new_tokens),
        form.flag("token_ids"),
    )


def sizes(model: Model, picture: Picture) -> dict[str, Any]:
    """An image's size as a person sees it and as the model does."""
    resized = model.shown_size(picture.width, picture.height) or (None, None)
    return {
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256,
        "resized_width": resized[0],
        "resized_height": resized[1],
    }


def contract_of(model: Model) -> Contract:
    if model.contract is None:
        raise Problem(
            422,
            "no_contract",
            "Nothing is known of this model's training; ask it over /v1/chat/completions.",
        )
    return model.contract


def check(contract: Contract, question: str, files: bool) -> None:
    """Refuse a question that the prompt has no place for, a prompt without its question, and files
    that the model cannot see."""
    asks = QUESTION in contract.prompt
    if asks and not question.strip():
        raise Problem(422, "question", "This model's prompt needs a question.")
    if question.strip() and not asks:
        raise Problem(
            422,
            "question",
            "This model was trained with one prompt that has no place for a question; leave the "
            "question out.",
        )
    if files and (tag := TAGS.search(question)):
        raise Problem(
            422,
            "question",
            f"A question must not contain {tag[0]}; uploads go before the question.",
        )
    if (contract.modality == "vision") != files:
        requirement = "takes an image" if contract.modality == "vision" else "takes no files"
        raise Problem(422, "files", f"This model {requirement}.")


def max_tokens(requested: str, most: int) -> int:
    """The requested answer length; Problem if it is not a number or too large."""
    if not requested:
        return most
    is_number = requested.isdecimal() and requested.isascii() and len(requested) < 7
    if not is_number or not 0 < int(requested) <= most:
        raise Problem(422, "max_tokens", f"max_tokens is a number from 1 to {most}.")
    return int(requested)
