"""Pieces of the OpenAPI document that FastAPI cannot know: bodies are read by hand, after the key
was checked, and errors have one form."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

WHAT = {
    400: "The body cannot be read.",
    401: "No valid key.",
    404: "There is no such thing for this key.",
    408: "The client stopped sending.",
    409: "The session is full, or this key has as many jobs or sessions as it may.",
    413: "Too large or too many.",
    415: "A type that is not accepted.",
    422: "A value that is not accepted.",
    429: "Too much at a time; Retry-After says when to try again.",
    500: "The gateway failed.",
    502: "The model's server failed.",
    503: "The model's server is not up; Retry-After says when to try again.",
    504: "The model's server took too long.",
    507: "The gateway's disk is full.",
}


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str


class OpenaiError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenaiDocument(BaseModel):
    error: OpenaiError
    request_id: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = ProblemDocument.model_json_schema()
    return {
        status: {
            "description": WHAT[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }


def answer(*types: str, status: int = 200, form: type[BaseModel] | None = None) -> Any:
    """The answer of a request that succeeds: its media types, and its JSON schema."""
    schemas: dict[str, Any] = {media_type: {} for media_type in types}
    if form is not None:
        schemas["application/json"] = inlined(form)
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {status: {"description": "The answer.", "content": content}}


STREAMED = ("application/json", "text/event-stream")


class Prediction(BaseModel):
    """The answer about one image, or to a text adapter's question."""

    image_index: int
    filename: str | None
    caption: str
    finish_reason: str | None
    image: dict[str, Any] | None = None
    token_ids: list[int] | None = None
    notes: list[str] = []


class PredictAnswer(BaseModel):
    predictions: list[Prediction]
    model: str
    model_uri: str | None
    processing_time_ms: float
    timing: dict[str, float | None]
    usage: dict[str, int]
    finish_reason: str | None
    request_id: str


def openai(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = inlined(OpenaiDocument)
    return {
        status: {
            "description": WHAT[status],
            "content": {"application/json": {"schema": schema}},
        }
        for status in statuses
    }


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with its definitions inlined: OpenAPI keeps definitions elsewhere."""
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {
                key: resolve(value)
                for key, value in node.items()
                # Its mapping names definitions that are no longer there.
                if key != "discriminator"
            }
        return [resolve(item) for item in node] if isinstance(node, list) else node

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": inlined(model)}},
        }
    }


def form_body(
    fields: dict[str, str], *, files: bool = True, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A multipart body: text fields with what they mean, and files."""
    properties: dict[str, Any] = {
        name: {"type": "string", "description": text} for name, text in fields.items()
    }
    if files:
        properties["files"] = {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "Images or videos.",
        }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = list(required)
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }
