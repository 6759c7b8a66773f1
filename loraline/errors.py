"""The failures that a user can act on; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """The user's mistake: one sentence with the bad value and the accepted ones."""

    exit_code = 2


class TryAgain(Exception):
    """Nothing is wrong with the request, but it cannot be done now: preempted, a service away.

    75 is EX_TEMPFAIL of sysexits.h; the workflow retries a step that ends with it.
    """

    exit_code = 75


class Stopped(BaseException):
    """Told to stop by a signal. Not an Exception: libraries catch those, and would go on."""

    exit_code = TryAgain.exit_code


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
