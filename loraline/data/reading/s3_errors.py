"""Errors of boto3 as ours: a user's mistake, or a service to try again."""

from __future__ import annotations

from loraline.addresses import scrubbed
from loraline.errors import TryAgain, UserError, first_line

STRANGERS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "XAdminUserNotFound"}
"""Error codes of servers that do not know the key, whatever their status says (Versity: 404)."""


def explained(error: Exception, place: str, *, connected: bool) -> UserError | TryAgain:
    """The error to raise for one of boto3's; `place` names the bucket in its sentence.

    `connected` is whether a client could be made. An error of a local file is raised as it is.
    """
    from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

    if isinstance(error, UserError | TryAgain):
        return error
    if isinstance(error, NoCredentialsError):
        return UserError(
            f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, ParamValidationError):
        return UserError(f"{place}: {' '.join(str(error).split())}")
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in ("PreconditionFailed", "412") or status == 412:
            return TryAgain(f"{place}: an object was changed while it was read")
        if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling"):
            return TryAgain(f"{place} does not answer ({code or status}); run it again")
        if 300 <= status < 400:
            return UserError(
                f"{place} answers with a redirect ({code or status}), which is not followed: "
                "set AWS_REGION or AWS_ENDPOINT_URL_S3 to where the bucket is"
            )
        if status in (401, 403) or code in STRANGERS:
            return UserError(f"{place} refuses these credentials ({code or status})")
        return UserError(f"{place}: {code or status}, no such bucket or object")
    if isinstance(error, ValueError) and not connected:
        return UserError(f"{place}: AWS_ENDPOINT_URL_S3 is no address ({scrubbed(str(error))})")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        raise error
    return TryAgain(f"{place} does not answer ({first_line(error)}); run it again")
