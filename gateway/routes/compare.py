"""/compare: one question to two, three or four models; their answers side by side."""

from __future__ import annotations

import asyncio
from itertools import combinations
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import core, documented, sse, uploads
from gateway import exchange as exchanges
from gateway.answering import answered
from gateway.bodies import as_json
from gateway.core import Gateway, RateLimited
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.routes import predict, tasks
from gateway.sessions import Keeper
from gateway.uploads import DECODERS, Form

router = APIRouter(tags=["Adapter"])

MOST = 4
FIELDS = {
    "models": "Names or roles of two to four models with commas between; by default base, "
    "candidate and champion as far as they are served.",
    "task": "A task; without one, the adapter's prompt is asked.",
    "question": "As in /predict.",
    "text": "As in /tasks.",
    "options": "As in /tasks.",
    "max_tokens": "As in /predict and /tasks.",
    "session": "Session that keeps question and answers.",
}


@router.post(
    "/compare",
    responses=documented.problems(*predict.ERRORS),
    openapi_extra=documented.form_body(FIELDS),
)
async def compare(request: Request, caller: RateLimited) -> Response:
    """Ask several models the same question, each greedily, and show where the answers differ."""
    gateway, exchange = core.of(request), exchanges.of(request)
    with gateway.admission.upload_slot():
        async with uploads.form(request, set(FIELDS), max_files=gateway.settings.max_files) as form:
            parsed = [
                await model_request(gateway, form, name, caller)
                for name in model_names(gateway, form, caller)
            ]
    if len({each.model.name for each in parsed}) < len(parsed):
        raise Problem(422, "models", "Name each model once.")
    pictures = list(parsed[0].pictures)
    exchange.digests += parsed[0].digests
    exchange.task = form.text("task") and parsed[0].task.name
    question = form.fields.get("text") or form.fields.get("question", "")
    keeper = Keeper(gateway.sessions, caller, form.text("session"), "compare", question, pictures)
    await keeper.check()
    with gateway.admission.caller_slot(caller):
        answers = await sse.unless_client_leaves(
            request, all_answers(gateway, parsed, caller, exchange)
        )
    loop = asyncio.get_running_loop()
    document = {
        "answers": answers,
        # Each box is laid over each other: hundreds of them take seconds.
        "comparisons": [
            await loop.run_in_executor(DECODERS, compared, *pair)
            for pair in combinations(answers, 2)
        ],
        "request_id": exchange.id,
    }
    await keeper.keep(document)
    return as_json(document)


def model_names(gateway: Gateway, form: Form, caller: Caller) -> list[str]:
    """The models that the form names, or the key's: the first of each role, then other adapters."""
    names = [part.strip() for part in form.text("models").split(",") if part.strip()]
    if names:
        if not 2 <= len(names) <= MOST:
            raise Problem(422, "models", f"Name from 2 to {MOST} models.")
        return names
    adapters: list[str] = []
    roles: dict[str, str] = {}
    for model in gateway.upstreams.models_for(caller):
        if model.role:
            roles.setdefault(model.role, model.name)
        if model.adapted:
            adapters.append(model.name)
    names = [roles[role] for role in ("base", "candidate", "champion") if role in roles]
    names = list(dict.fromkeys([*names, *adapters]))[:MOST]
    if len(names) < 2:
        raise Problem(
            422, "models", "A comparison needs two models, and fewer are up for this key."
        )
    return names


async def model_request(gateway: Gateway, form: Form, name: str | None, caller: Caller) -> Any:
    """The request to one model: for a task where the form names one, else with its prompt."""
    check_fields(form)
    if task := form.text("task"):
        model = gateway.upstreams.model(name, caller, longest_context=True)
        return await tasks.read(gateway, form, tasks.find(gateway, task), model)
    return await predict.read(gateway, form, caller, name)


def check_fields(form: Form) -> None:
    """Refuse a field that is not read beside the form's task, or without one."""
    if form.text("task"):
        if form.text("question"):
            raise Problem(422, "question", "A task is asked with text, not with a question.")
        return
    for name in ("text", "options"):
        if form.text(name):
            raise Problem(422, name, "text and options belong to a task.")


async def all_answers(
    gateway: Gateway, parsed: list[Any], caller: Caller, exchange: Exchange
) -> list[dict[str, Any]]:
    """The answers of all models, asked at the same time; a failed model has its problem."""

    async def ask(each: Any) -> dict[str, Any]:
        single = Exchange(id=exchange.id)
        try:
            answer = await answered(gateway, each, caller, single)
        except Problem as problem:
            return {"model": each.model.name, "problem": problem.document(exchange.id)}
        gateway.metrics.count_tokens(single)
        exchange.prompt_tokens += single.prompt_tokens
        exchange.completion_tokens += single.completion_tokens
        return answer

    asking = [asyncio.ensure_future(ask(each)) for each in parsed]
    try:
        return list(await asyncio.gather(*asking))
    finally:
        await sse.end(*asking)


def compared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Whether two answers are equal, and how far their boxes overlap."""
    comparison: dict[str, Any] = {"models": [first["model"], second["model"]]}
    if "problem" in first or "problem" in second:
        return comparison
    comparison["equal"] = texts(first) == texts(second)
    boxes = [
        [(item.get("label"), item["box_unit"]) for item in each.get("items", ()) if boxed(item)]
        for each in (first, second)
    ]
    if any(boxes):
        comparison["iou"] = round(mean_iou(*boxes), 4)
    return comparison


def boxed(item: dict[str, Any]) -> bool:
    return bool(item.get("box_unit"))


def texts(answer: dict[str, Any]) -> list[str]:
    if "predictions" in answer:
        return [each["caption"] for each in answer["predictions"]]
    return [answer["raw"].strip()]


Boxes = list[tuple[Any, Any]]


def mean_iou(first: Boxes, second: Boxes) -> float:
    """Overlap of the boxes of two answers: the best pairs of one label first, each box in one pair;
    a box without a partner counts as 0."""
    pairs = sorted(
        (
            (overlap, at, place)
            for at, (label, box) in enumerate(first)
            for place, (name, other) in enumerate(second)
            if label == name and (overlap := iou(box, other)) > 0
        ),
        reverse=True,
    )
    left, right, total = set(), set(), 0.0
    for overlap, at, place in pairs:
        if at not in left and place not in right:
            left.add(at)
            right.add(place)
            total += overlap
    return total / max(len(first), len(second))


def iou(first: Any, second: Any) -> float:
    """Intersection over union of two boxes, each left, top, right, bottom."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0
