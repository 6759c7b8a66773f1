"""/tasks: ask a model for a task; its answer comes as boxes, points, texts, events or actions."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import core, documented, uploads
from gateway import exchange as exchanges
from gateway.answering import respond
from gateway.bodies import as_json
from gateway.core import Authenticated, Gateway, RateLimited
from gateway.errors import Problem
from gateway.images import Picture
from gateway.keys import Caller
from gateway.routes.predict import max_tokens, sizes
from gateway.served import Model
from gateway.sessions import Keeper
from gateway.tasks import Task
from gateway.uploads import DECODERS, Form
from gateway.video import Clip
from loraline.base import pixels

router = APIRouter(tags=["Tasks"])

FIELDS = {
    "text": "A question, the things to find, or what an agent has to do.",
    "options": "JSON object with the prompt's other variables.",
    "model": "Name or role of a model; by default the base.",
    "max_tokens": "Longest answer in tokens; by default and at most the task's.",
    "stream": "true for server-sent events.",
    "overlay": "svg, png, or both with a comma between: the image with its results marked.",
    "session": "Session that keeps question and answer.",
}
ERRORS = (400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507)


@router.get("/tasks", responses=documented.problems(401))
async def listed(request: Request, _: Authenticated) -> Response:
    """The tasks, with what they take and what they answer."""
    return as_json({"tasks": [card(task) for task in core.of(request).tasks.values()]})


@router.post(
    "/tasks/{task}",
    responses=documented.problems(*ERRORS) | documented.answer(*documented.STREAMED),
    openapi_extra=documented.form_body(FIELDS),
)
async def ask(request: Request, task: str, caller: RateLimited) -> Response:
    """Ask a model for a task, and read its answer."""
    gateway, exchange = core.of(request), exchanges.of(request)
    chosen = find(gateway, task)
    exchange.task = chosen.name
    with gateway.admission.upload_slot():
        async with uploads.form(request, set(FIELDS), max_files=gateway.settings.max_files) as form:
            name = form.text("model") or base(gateway, caller)
            model = gateway.upstreams.model(name, caller, longest_context=True)
            parsed = await read(gateway, form, chosen, model)
    exchange.digests += parsed.digests
    keeper = Keeper(
        gateway.sessions, caller, form.text("session"), chosen.name, parsed.text, parsed.pictures
    )
    await keeper.check()
    return await respond(request, gateway, parsed, caller, keeper.keep, form.flag("stream"))


@dataclass
class TaskRequest:
    """A parsed request: it builds the server's body, and turns the answer into items."""

    gateway: Gateway
    task: Task
    model: Model
    text: str
    variables: dict[str, Any]
    pictures: Sequence[Picture]
    clip: Clip | None
    max_tokens: int
    overlay: tuple[str, ...] = ()
    count: int = field(default=1, init=False)

    @property
    def digests(self) -> list[str]:
        of_pictures = [picture.sha256 for picture in self.pictures]
        return [*of_pictures, self.clip.sha256] if self.clip else of_pictures

    def body(self, index: int) -> dict[str, Any]:
        media: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {
                    "url": f"data:{each.mime};base64,{base64.b64encode(each.content).decode()}"
                },
            }
            for each in self.pictures
        ]
        if self.clip:
            media.append({"type": "video_url", "video_url": {"url": self.clip.uri}})
        family = self.model.family
        body = {
            "model": self.model.name,
            "messages": self.task.messages(family, media, **self.variables),
            **self.task.sampling(family),
            "max_tokens": self.max_tokens,
        }
        return body | {"media_io_kwargs": self.clip.io_kwargs} if self.clip else body

    async def result(self, index: int, text: str, choice: dict[str, Any]) -> dict[str, Any]:
        """The answer read by the task's parser, beside the loop: a long one takes its time."""
        began = time.perf_counter()
        reason = str(choice.get("finish_reason") or "")
        loop = asyncio.get_running_loop()
        parsed = await loop.run_in_executor(DECODERS, self.parse, text, reason)
        if parsed.problems:
            self.gateway.metrics.repaired.labels(self.task.name).inc()
        answer: dict[str, Any] = {
            "value": parsed.value,
            "items": parsed.items,
            "notes": parsed.problems,
            "raw": text,
            "finish_reason": choice.get("finish_reason"),
        }
        if self.pictures:
            answer["image"] = sizes(self.model, self.pictures[0])
        if self.overlay:
            answer["overlay"] = await loop.run_in_executor(DECODERS, self.draw, parsed.items)
        answer["parse_s"] = time.perf_counter() - began
        return answer

    def parse(self, text: str, reason: str) -> Any:
        from gateway import parsing

        original = resized = None
        if self.pictures:
            original = (self.pictures[0].width, self.pictures[0].height)
            resized = self.model.shown_size(*original)
        return parsing.parse(
            self.task,
            text,
            family=self.model.family,
            finish_reason=reason,
            original=original,
            resized=resized,
        )

    def draw(self, items: list[dict[str, Any]]) -> dict[str, str]:
        from gateway import overlay

        picture = self.pictures[0]
        drawn = {}
        if "svg" in self.overlay:
            drawn["svg"] = overlay.svg((picture.width, picture.height), items)
        if "png" in self.overlay:
            content = overlay.png(picture.content, items, self.gateway.settings.max_pixels)
            drawn["png"] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return drawn

    def document(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        return {"task": self.task.name, **results[0]}


async def read(gateway: Gateway, form: Form, task: Task, model: Model) -> TaskRequest:
    """The request of a form; a Problem for what the task or the model does not take."""
    settings, limits = gateway.settings, task.limits
    if not task.is_for(model.family):
        raise Problem(422, "files", "This model sees neither images nor videos.")
    if not task.has_prompt(model.family):
        raise Problem(422, "model", "The task has no prompt for models of this family.")
    videos = [upload for upload in form.files if upload.video]
    pictures: list[Picture] = []
    clip = None
    if task.inputs == "video":
        if len(videos) != 1 or len(form.files) != 1:
            raise Problem(422, "files", "This task takes one video.")
        async with gateway.admission.video_slot():
            clip = await videos[0].clip(
                settings,
                max_frames=min(limits.max_frames, settings.max_frames),
                max_seconds=min(limits.max_seconds, settings.max_seconds),
                cell=pixels.cell(model.family),
            )
    elif task.inputs == "image":
        most = limits.max_images
        if not 1 <= len(form.files) <= most:
            raise Problem(422, "files", f"This task takes from 1 to {most} images.")
        pictures = [await upload.picture(settings) for upload in form.files]
    elif form.files:
        raise Problem(422, "files", "This task takes no files.")
    return TaskRequest(
        gateway,
        task,
        model,
        form.fields.get("text", ""),
        variables(task, model, form, pictures),
        pictures,
        clip,
        max_tokens(form.text("max_tokens"), longest_answer(gateway, task, model)),
        overlays(form, task),
    )


def longest_answer(gateway: Gateway, task: Task, model: Model) -> int:
    """Most tokens of an answer: the task's, and half of the context of a server that has less room.

    An adapter's server has the context of its training rows, and vLLM refuses what cannot fit.
    """
    most = min(task.limits.max_new_tokens, gateway.settings.max_tokens)
    # vLLM lists a length for bases alone.
    context = model.max_model_len or (model.contract.max_model_len if model.contract else None)
    return most if context is None else min(most, max(1, context // 2))


def variables(task: Task, model: Model, form: Form, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Values of the prompt's variables; Problem when one is missing, too long or unknown."""
    try:
        options = orjson.loads(form.text("options") or b"{}")
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(
        isinstance(value, str | int | float) for value in options.values()
    ):
        raise Problem(422, "options", "options is a JSON object of texts and numbers.")
    values = {str(name): value for name, value in options.items()}
    if form.text("text"):
        values["text"] = form.fields["text"]
    if set(values) - set(task.variables):
        accepted = ", ".join(task.variables) or "none"
        raise Problem(
            422, "options", f"options has a variable that the task lacks; accepted: {accepted}."
        )
    if pictures:
        resized = model.shown_size(pictures[0].width, pictures[0].height)
        width, height = resized or (pictures[0].width, pictures[0].height)
        values |= {"width": width, "height": height}
    try:
        task.messages(model.family, **values)
    except LookupError:
        required = ", ".join(name for name, value in task.variables.items() if value is None)
        raise Problem(
            422,
            "options",
            f"The task needs {required or 'no variables'}, of 10,000 characters at most.",
        ) from None
    return values


def overlays(form: Form, task: Task) -> tuple[str, ...]:
    formats = tuple(part.strip() for part in form.text("overlay").split(",") if part.strip())
    if not set(formats) <= {"svg", "png"}:
        raise Problem(422, "overlay", "overlay is svg, png or both.")
    if formats and task.inputs != "image":
        raise Problem(422, "overlay", "Only a task on an image has an overlay.")
    return formats


def find(gateway: Gateway, name: str) -> Task:
    if name not in gateway.tasks:
        raise Problem(404, "task_unknown", "There is no such task; GET /tasks lists them.")
    return gateway.tasks[name]


def base(gateway: Gateway, caller: Caller) -> str | None:
    """The model that tasks go to: an adapter was trained and measured for one prompt only."""
    models = gateway.upstreams.models_for(caller)
    return next((model.name for model in models if model.role == "base"), None)


def card(task: Task) -> dict[str, Any]:
    """What clients see of a task."""
    document: dict[str, Any] = task.model_dump(mode="json")
    return document
