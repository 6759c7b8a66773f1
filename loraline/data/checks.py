"""What is looked for in every row, and what is done with a row in which it is found.

A row is kept as it is, dropped, or repaired in a way that is counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from loraline.errors import UserError
from loraline.records import IMAGE, TAGS, VIDEO, Detail

FAIL, DROP, REPAIR, KEEP = "fail", "drop", "repair", "keep"


class Check(NamedTuple):
    """One thing to look for."""

    default: str
    accepted: tuple[str, ...]
    """Actions that can be chosen; the cure of `repair` is named in `meaning`."""

    meaning: str


CHECKS: dict[str, Check] = {
    "unreadable": Check(
        FAIL, (FAIL, DROP), "a line, row or archive member that is no JSON, no UTF-8 or too long"
    ),
    "format": Check(FAIL, (FAIL, DROP), "a row that fits none of the formats"),
    "unused": Check(
        FAIL,
        (FAIL, DROP),
        "a column or a key of a turn that carries meaning and would not be used, such as tools, "
        "weights, choices or a second answer",
    ),
    "numbers": Check(
        REPAIR,
        (FAIL, DROP, REPAIR),
        "an answer that is a number or a truth value; repair takes it as it is written",
    ),
    "roles": Check(
        FAIL,
        (FAIL, DROP, REPAIR),
        "turns that do not alternate from user to assistant; repair joins turns of the same role",
    ),
    "empty": Check(
        FAIL, (FAIL, DROP), "an empty answer or question, be it a text, a null or an empty cell"
    ),
    "missing": Check(
        FAIL,
        (FAIL, DROP, KEEP),
        "an answer or question that is nan, None, null or so, as tables write a missing value",
    ),
    "line_ends": Check(
        KEEP,
        (FAIL, DROP, REPAIR, KEEP),
        "an answer that begins or ends with a line end; repair cuts the line ends off",
    ),
    "tags": Check(
        FAIL,
        (FAIL, DROP, REPAIR),
        "media tags and media that do not match one to one; repair puts tags before the first "
        "question of a row that has none",
    ),
    "tags_in_answer": Check(
        FAIL, (FAIL, DROP), "a media tag in a turn that is not the user's, in a row with media"
    ),
    "modality": Check(
        FAIL,
        (FAIL, DROP),
        "media in a row for a text model, a video for a base without a place for one, or sounds",
    ),
    "media_missing": Check(
        FAIL, (FAIL, DROP), "media that are absent, outside of the source, or a web address"
    ),
    "media_broken": Check(FAIL, (FAIL, DROP), "media that are truncated or cannot be decoded"),
    "media_format": Check(
        FAIL,
        (FAIL, DROP),
        "an image of a type or color mode that is not read, such as AVIF, SVG or PDF, or "
        "HEIC without the extra `heic`",
    ),
    "media_frames": Check(
        FAIL,
        (FAIL, DROP, REPAIR),
        "an image with several frames or pages; repair takes the first",
    ),
    "media_type": Check(
        REPAIR,
        (FAIL, DROP, REPAIR),
        "an image whose content is of another type than its name says; repair goes by the content",
    ),
    "appearance": Check(
        REPAIR,
        (FAIL, DROP, REPAIR),
        "an image that is turned by its EXIF orientation, has transparent parts, or is grey with "
        "16 or more bits, which servers and processors show in different ways; repair stores it "
        "upright, on white, in 8 bits scaled from the range of its values or from `window`",
    ),
    "media_limits": Check(
        FAIL, (FAIL, DROP), "media over the limits of bytes, pixels, aspect ratio or frames"
    ),
    "boxes": Check(FAIL, (FAIL, DROP), "a bounding box that is malformed or outside of its image"),
    "characters": Check(
        REPAIR,
        (FAIL, DROP, REPAIR),
        "control characters, NUL, lone surrogates, byte order marks, text direction overrides; "
        "repair removes them",
    ),
    "normalization": Check(
        KEEP,
        (FAIL, DROP, REPAIR, KEEP),
        "text that is not in Unicode's composed form (NFC); repair composes it",
    ),
    "special_tokens": Check(
        DROP, (FAIL, DROP, KEEP), "text that the tokenizer would read as one of its control tokens"
    ),
    "too_long": Check(DROP, (FAIL, DROP), "a row longer than the profile's max_length"),
    "answer_too_long": Check(
        KEEP,
        (FAIL, DROP, KEEP),
        "an answer longer than the profile's max_new_tokens, at which evaluation stops",
    ),
    "duplicates": Check(
        DROP,
        (FAIL, DROP, KEEP),
        "a row that an earlier row of its split repeats, spaces and case aside",
    ),
    "near_duplicates": Check(
        KEEP, (FAIL, DROP, KEEP), "a row nearly the same as an earlier one of its split"
    ),
    "leaks": Check(
        DROP,
        (FAIL, DROP, KEEP),
        "a row or an image that also stands in a split nearer to the test; it is dropped where "
        "it would be trained on",
    ),
    "near_leaks": Check(
        KEEP, (FAIL, DROP, KEEP), "the same for rows and images that are nearly the same"
    ),
}


class BadRow(Exception):
    """A row that does not pass a check, in a clause that follows its place."""

    def __init__(self, check: str, clause: str) -> None:
        super().__init__(clause)
        self.check = check
        self.clause = clause


Policy = Mapping[str, str]
"""Action by check."""


def policy(choices: Iterable[str] = ()) -> dict[str, str]:
    """The action of each check: defaults, and choices written as `check=action`."""
    chosen = {name: check.default for name, check in CHECKS.items()}
    for choice in choices:
        name, _, action = choice.partition("=")
        if name not in CHECKS:
            raise UserError(f"unknown check {name!r} in {choice!r}; accepted: {', '.join(CHECKS)}")
        accepted = CHECKS[name].accepted
        if action not in accepted:
            raise UserError(
                f"check {name} cannot be set to {action!r}; accepted: {', '.join(accepted)}"
            )
        chosen[name] = action
    return chosen


UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
"""Unicode categories Cc without tab and line ends, Cs, the bidirectional controls of Unicode
Technical Report 36, the byte order mark and the two noncharacters of the basic plane."""

Turns = list[tuple[str, str]]


def clean_text(turns: Turns, actions: Policy, flagged: list[str]) -> Turns:
    """Turns without unwanted characters, and answers without line ends at their ends if asked to.

    What was kept or repaired is named in `flagged`.

    Raises BadRow where the action is to drop or to fail.
    """
    for index, (role, text) in enumerate(turns):
        # A text that prints holds none of them and no line ends, and this is known at once.
        if not text.isprintable():
            if match := UNWANTED.search(text):
                if actions["characters"] != REPAIR:
                    code = f"U+{ord(match.group()):04X}"
                    raise BadRow("characters", f"{role} turn holds the character {code}")
                flagged.append("characters")
                turns[index] = (role, text := UNWANTED.sub("", text))
            if role == "assistant" and text and (text[0] in "\r\n" or text[-1] in "\r\n"):
                turns[index] = (role, text := without_line_ends(text, actions, flagged))
        if not text.isascii() and not unicodedata.is_normalized("NFC", text):
            if actions["normalization"] in (FAIL, DROP):
                raise BadRow("normalization", f"{role} turn is not in composed form (NFC)")
            flagged.append("normalization")
            if actions["normalization"] == REPAIR:
                turns[index] = (role, unicodedata.normalize("NFC", text))
    return turns


def clean_details(
    details: Mapping[int, Detail], tools: str, actions: Policy, flagged: list[str]
) -> tuple[dict[int, Detail], str]:
    """What turns hold beside their text, and the tools, without unwanted characters; see
    `clean_text`. Of calls and tools these are the characters of their JSON."""

    def clean(text: str, place: str) -> str:
        match = None if text.isprintable() else UNWANTED.search(text)
        if match is None:
            return text
        if actions["characters"] != REPAIR:
            raise BadRow("characters", f"{place} holds the character U+{ord(match.group()):04X}")
        flagged.append("characters")
        return UNWANTED.sub("", text)

    cleaned = {
        number: detail._replace(
            calls=clean(detail.calls, "a call"),
            reasoning=clean(detail.reasoning, "reasoning"),
            name=clean(detail.name, "the name of a tool"),
        )
        for number, detail in details.items()
    }
    return cleaned, clean(tools, "a tool")


def without_line_ends(answer: str, actions: Policy, flagged: list[str]) -> str:
    """An answer that begins or ends with a line end, without it if it is to be repaired."""
    if actions["line_ends"] in (FAIL, DROP):
        raise BadRow("line_ends", "answer begins or ends with a line end")
    flagged.append("line_ends")
    return answer.strip("\r\n") if actions["line_ends"] == REPAIR else answer


TOOL_TURNS = re.compile("s?(u(a(t+a)*))(u(a(t+a)*))*")
"""System, user, assistant and tool turns by their first letters. An answer may call tools in its
text, as ReAct and Hermes write it; whether results may follow is for the chat template to say."""


def alternate(
    turns: Turns, actions: Policy, flagged: list[str], details: Mapping[int, Detail] | None = None
) -> Turns:
    """Turns that go from user to assistant and end with the answer, after at most one of system.

    Results of tools may stand between two answers. Rows with `details` are never joined.
    """
    roles = [role for role, _ in turns]
    first = 1 if roles[0] == "system" else 0
    pairs = (len(roles) - first) // 2
    if pairs and roles[first:] == ["user", "assistant"] * pairs:
        return turns
    if "tool" in roles and TOOL_TURNS.fullmatch("".join(role[0] for role in roles)):
        return turns
    if actions["roles"] == REPAIR and not details:
        joined = turns[:1]
        for role, text in turns[1:]:
            if role == joined[-1][0]:
                joined[-1] = (role, f"{joined[-1][1]}\n{text}")
            else:
                joined.append((role, text))
        if joined != turns:
            flagged.append("roles")
            return alternate(joined, {**actions, "roles": FAIL}, flagged)
    order = ", ".join(role for role, _ in turns[:8])
    raise BadRow(
        "roles",
        f"turns must alternate from user to assistant and end with the answer, found {order}",
    )


def match_tags(
    turns: Turns, images: int, videos: int, actions: Policy, flagged: list[str]
) -> Turns:
    """Turns whose tags stand for `images` and `videos` one to one, and in user turns only.

    In a row without media, an answer may speak of tags.
    """
    tags = {IMAGE: 0, VIDEO: 0}
    for role, text in turns:
        if "<" in text:
            for tag in TAGS.findall(text):
                if role != "user":
                    if not images and not videos:
                        continue
                    raise BadRow("tags_in_answer", f"{tag} must not stand in the {role} turn")
                tags[tag] += 1
    if tags[IMAGE] == images and tags[VIDEO] == videos:
        return turns
    if actions["tags"] == REPAIR and not any(tags.values()):
        first = next(index for index, (role, _) in enumerate(turns) if role == "user")
        flagged.append("tags")
        text = IMAGE * images + VIDEO * videos + turns[first][1]
        return [*turns[:first], ("user", text), *turns[first + 1 :]]
    raise BadRow(
        "tags",
        f"{tags[IMAGE]} {IMAGE} tags for {images} images and "
        f"{tags[VIDEO]} {VIDEO} tags for {videos} videos",
    )


def refuse_empty_turns(turns: Turns, details: Mapping[int, Detail] | None = None) -> None:
    """Raise BadRow for an empty turn of user or assistant; a media tag or a call is content."""
    for number, (role, text) in enumerate(turns):
        if role not in ("system", "tool") and (not text or text.isspace()):
            if details and number in details and details[number].calls:
                continue
            name = "answer" if role == "assistant" else "question"
            raise BadRow("empty", f"{name} is empty")
