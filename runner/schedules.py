"""The schedule of a CronWorkflow, checked against what Argo's scheduler reads.

The scheduler is robfig/cron 3 with five fields: lists of numbers, names, ranges and steps, or a
word such as `@daily`.
"""

from __future__ import annotations

import re
from zoneinfo import available_timezones

from runner.language import Refused
from runner.shapes import Cron, seconds

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    ("day of the week", 0, 6, {name: number for number, name in enumerate(DAYS)}),
)
"""Name, lowest, highest value and words of each field."""

WORDS = ("@annually", "@daily", "@hourly", "@midnight", "@monthly", "@weekly", "@yearly")
POLICIES = ("", "Allow", "Forbid", "Replace")
PART = re.compile(r"(?P<first>[*?]|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?")


def check_times(cron: Cron) -> None:
    """Refuse what Argo's scheduler would not read."""
    for schedule in cron.schedules or []:
        check_schedule(schedule)
    if (cron.concurrencyPolicy or "") not in POLICIES:
        accepted = ", ".join(POLICIES[1:])
        raise Refused(f"spec: concurrencyPolicy {cron.concurrencyPolicy} is none of {accepted}")
    if cron.timezone and cron.timezone not in available_timezones():
        raise Refused(f"spec: timezone {cron.timezone} is none that is known")


def check_schedule(schedule: str) -> None:
    where = f"spec: schedule {schedule!r}"
    if schedule.startswith("@every "):
        seconds(where, schedule.removeprefix("@every "), digits=False)
        return
    if schedule in WORDS:
        return
    fields = schedule.split()
    if len(fields) != len(FIELDS):
        raise Refused(f"{where} has {len(fields)} fields; Argo reads five, or a word like @daily")
    for text, (name, lowest, highest, words) in zip(fields, FIELDS, strict=True):
        for part in text.split(","):
            if not is_sound(part, lowest, highest, words):
                raise Refused(f"{where}: {part!r} is no {name} of {lowest} to {highest}")


def is_sound(part: str, lowest: int, highest: int, words: dict[str, int]) -> bool:
    """Whether a number, a range or a star, each with or without a step, is within its bounds."""
    if not (match := PART.fullmatch(part)) or match["step"] == "0":
        return False
    if match["first"] in ("*", "?"):
        return match["last"] is None
    first = number_of(match["first"], words)
    last = number_of(match["last"] or match["first"], words)
    return first is not None and last is not None and lowest <= first <= last <= highest


def number_of(text: str, words: dict[str, int]) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]+", text) else words.get(text.lower())
