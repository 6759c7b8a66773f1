"""JSON bodies: read field by field; the first invalid field is named in the refusal."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.errors import ClientGone, Problem


class Strict(BaseModel):
    """Only listed fields are accepted; any other field is refused by name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, value: Any) -> Any:
        """Clients send null for a field that they do not set."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, form: type[Body]) -> Body:
    """The body as `form`; a Problem if it does not fit."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "json", "Send application/json.")
    try:
        return form.model_validate(orjson.loads(await request.body()))
    except ClientDisconnect:
        raise ClientGone from None
    except ValidationError as error:
        raise complaint(error) from None
    except (ValueError, RecursionError):
        raise Problem(400, "json", "The body is not JSON.") from None


def complaint(error: ValidationError) -> Problem:
    """The first thing wrong, by its place and what was expected there, without what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if str(part).replace("_", "").isalnum())
    message = first["msg"] if first["type"] != "extra_forbidden" else "this field is not accepted"
    return Problem(422, "field", f"{place[:120] or 'The body'}: {message}.")


def as_json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, None, "application/json")
