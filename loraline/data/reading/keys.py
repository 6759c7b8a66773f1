"""Meanings of keys that no format uses: none is left unused in silence.

A key is used by the row's format, or listed in the report as not used, or refused by the check
`unused` since elsewhere it carries what the row is about.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loraline.data.checks import BadRow

HARMLESS = frozenset(
    [
        "id",
        "ids",
        "_id",
        "idx",
        "index",
        "uid",
        "uuid",
        "guid",
        "hash",
        "key",
        "qid",
        "question_id",
        "prompt_id",
        "image_id",
        "sample_id",
        "conversation_id",
        "message_id",
        "parent_id",
        "source",
        "sources",
        "dataset",
        "dataset_name",
        "origin",
        "url",
        "urls",
        "link",
        "license",
        "licence",
        "lang",
        "language",
        "locale",
        "category",
        "categories",
        "domain",
        "task",
        "tasks",
        "task_name",
        "task_type",
        "type",
        "subject",
        "topic",
        "full_topic",
        "tags",
        "difficulty",
        "level",
        "split",
        "model",
        "model_name",
        "generator",
        "date",
        "created",
        "created_at",
        "timestamp",
        "time",
        "author",
        "user_id",
        "meta",
        "metadata",
        "info",
        "version",
        "turn",
        "num_turns",
        "tokens",
        "token_count",
        "num_tokens",
        "length",
        "height",
        "width",
        "md5",
        "sha256",
    ]
)
"""Keys about a row's origin and properties, on which the answer does not depend."""

SETTINGS = "under prepare in the recipe, or in datasets.yaml"
"""Where it is said how rows are read."""

IN_THE_QUESTION = 'columns: {{question: "{{{key}}}\\n\\n{{{asked}}}"}} asks with it'
CHOOSE = 'columns: {{question: "{{{asked}}}\\n{{{key}}}"}} asks with it'
GOOD_HALF = "preference: good learns the good half"
TURNS_ONLY = ""
"""Nothing reads it: it belongs to a turn."""

MEDIA = "columns: {{image: {key}}} (or video) names the media"
SYSTEM = "columns: {{system: {key}}} puts it first"
TOOLS = "columns: {{tools: {key}}} names the tools"
LAST = "learn: last learns the last answer alone"
BOXES = "boxes: pixels reads the boxes of `objects`"

ANSWER = "columns: {{answer: {key}}} answers with it"

GOOD = r"(is_)?(good|chosen|preferred|correct|acceptable|desirable|helpful)|thumbs?_?up|upvoted"
"""Keys that say whether an answer is a good one."""

LEARNT = (
    r"(loss(es)?|weights?|train(s|ed|ing|able)?|learn(ed|t|able|ing)?|mask(s|ed)?|supervised?"
    r"|skip(ped)?|ignored?|excluded?)"
)
ABOUT = (
    r"(is|do|no|not|has|to|should|be|use|compute|calculate|on|in|with|inputs?|outputs?|tokens?"
    r"|assistants?|answers?|responses?|samples?|rows?|turns?|examples?|details?|scales?|history"
    r"|labels?|only)"
)
"""Words of keys that say what is learnt, and words beside them: `loss_mask`, `do_train`."""

MEANS: tuple[tuple[str, str], ...] = (
    (
        r"((sql|table|retrieved|supporting|source|reference|gold)_)?"
        r"(context|passage|document|doc|paragraph|evidence|fact)s?",
        IN_THE_QUESTION,
    ),
    (
        r"article|background|story|knowledge(_base)?|hint|lecture|tables?|schema|support|premise"
        r"|((chat|conversation|dialog|dialogue)_)?history|transcript(ion)?|dialog|dialogue|excerpt|snippets?"
        r"|scenario|situation|persona(lity|s)?|abstract|search_results?|retrieved(_\w+)?|chunks",
        IN_THE_QUESTION,
    ),
    (
        r"(answer_|possible_|multiple_|available_)?(choice|option|ending)s?([ _-]?[a-h1-9])?"
        r"|op[a-e]|ans[_-]?[a-e]|[(\[]?[a-g][)\].:]?|distractor[ _-]?\d?"
        r"|(answer_)?candidates?|alternatives|(possible|candidate)_answers|mc[12]_targets",
        CHOOSE,
    ),
    (
        r"(answer|response|output|completion|reply|solution)s?[ _-]?\d"
        r"|(bad|wrong|incorrect|worse|alternative|other|second)_"
        r"(answer|response|output|completion|reply)s?",
        ANSWER,
    ),
    (
        r"(non_)?(chosen|rejected|reject|accept|accepted|preferred|negative|winner|loser)"
        r"(_(response|answer|output|message|text|completion|image)s?)?",
        GOOD_HALF,
    ),
    (rf"labels?|kto_(tag|label)|preference|{GOOD}", GOOD_HALF),
    (r"mask_history", LAST),
    (rf"(?!masks$)({ABOUT}[_-])*{LEARNT}([_-]({ABOUT}|{LEARNT}))*", TURNS_ONLY),
    (r"(reasoning|thinking|thoughts?|rationales?|chain_of_thought|cot)(_\w+)?", TURNS_ONLY),
    (r"(model_|complex_|long_)?(reasoning|thinking|thought|think|cot)", TURNS_ONLY),
    (r"tool_calls?|function_calls?|refusal", TURNS_ONLY),
    (r"(chat_)?template_kwargs|enable_thinking", TURNS_ONLY),
    (r"tools|functions?|available_(tools|functions)|(tool|api)_list", TOOLS),
    (r"system(_(message|prompt|instruction|text))?s?|developer(_message)?", SYSTEM),
    (r"objects|bbox(es)?|boxes|masks|segmentation|(key)?points|polygons?|rles?", BOXES),
    (
        r"(image|img|picture|photo|video|pdf|figure)s?([ _-]?(\d+|bytes|base64))?|file_name"
        r"|depth(_map)?",
        MEDIA,
    ),
)
"""Names of keys that carry meaning elsewhere, as patterns, each with what to do about them."""

NAMES_OF_MEDIA = re.compile(
    r"(image|img|picture|photo|video|pdf|figure)s?[ _-](path|file|filename|name|url|uri|link)s?"
)
"""Keys that name a row's media; where the media are there, they add nothing."""

SOUNDS = re.compile(r"(input_)?(audio|speech|sound|wav|voice)s?(_(path|file|url|byte)s?)?")
"""Keys of what no base here can hear."""

REPEATS = frozenset(
    [
        "instruction",
        "prompt",
        "query",
        "question",
        "input",
        "text",
        "caption",
        "completion",
        "output",
        "response",
        "answer",
        "answers",
        "system",
        "system_prompt",
        "messages",
        "conversations",
        "conversation",
        "problem",
        "solution",
        "inputs",
        "target",
        "targets",
        "content",
        "value",
    ]
)
"""Keys of other formats. They are harmless only if they repeat a text of the row."""

OF_ANSWERS = frozenset(
    ["completion", "output", "response", "answer", "answers", "solution", "target", "targets"]
)
"""Those of them that hold an answer."""

ENDS = " \t\r\n.!}$"
"""Characters that may follow a result at the end of an answer."""

SWITCHES = re.compile(
    rf"((is|do|compute|sample|loss)_)?(weight|loss|loss_scale|train|training|trainable|learn)|{GOOD}"
)
"""Keys that change nothing where they are 1 or true."""

MASKS = re.compile(
    r"(is_)?mask(ed)?|mask_history|no_(loss|train)|train_on_inputs?|(is_)?(skip(ped)?|ignored?)"
)
"""Keys that change nothing where they are 0 or false."""


def filled(value: Any) -> bool:
    """Whether a cell holds a value; pandas writes NaN for none."""
    if isinstance(value, float) and value != value:
        return False
    return value is not None and value != "" and value != [] and value != {}


def unused_keys(
    row: Mapping[str, Any],
    keys: Iterable[str],
    turns: Sequence[tuple[str, str]],
    question_column: Sequence[str],
    has_media: bool = False,
) -> list[str]:
    """Those of some keys of a row that are filled, for the report: the row's format has no use.

    Raises BadRow of the check `unused` for one that carries meaning elsewhere, and of `modality`
    for sounds. `question_column` is the column of the question, if there is one; `has_media` says
    that the row has media.
    """
    listed = []
    for key in keys:
        value = row[key]
        if value is None or value == "" or not filled(value):
            continue
        name = str(key)
        listed.append(name)
        if name in HARMLESS:
            continue
        if names_sound(name):
            raise BadRow("modality", f"holds {name}, and no base here hears")
        if has_no_effect(name, value):
            continue
        remedy = meaning(name)
        if remedy is None and not has_media and names_media(name):
            remedy = MEDIA
        if remedy is not None:
            raise unused(name, remedy.format(key=name, asked=[*question_column, "question"][0]))
        if name in REPEATS and not repeats(name, value, turns):
            raise unused(name, f"columns: {{answer: {name}}} or so says what it is")
    return listed


def repeats(name: str, value: Any, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether a text only repeats a turn, or writes out the last two turns.

    What is called an answer has to end one.
    """
    if not isinstance(value, str):
        return not turns
    text = value.strip()
    if all(turn_text.strip() in text for _, turn_text in turns[-2:]):
        return True
    if name in OF_ANSWERS:
        answers = [turn_text.rstrip(ENDS) for role, turn_text in turns if role == "assistant"]
        return any(turn_text.endswith(text.rstrip(ENDS)) for turn_text in answers)
    return any(text in turn_text.strip() for _, turn_text in turns)


def has_no_effect(name: str, value: Any) -> bool:
    """Whether a key about what is learnt has the value that changes nothing."""
    if not isinstance(value, bool | int | float):
        return False
    plain = name.strip().lower()
    return (value == 1 and SWITCHES.fullmatch(plain) is not None) or (
        value == 0 and MASKS.fullmatch(plain) is not None
    )


@functools.lru_cache(maxsize=4096)
def names_sound(name: str) -> bool:
    return SOUNDS.fullmatch(name.lower()) is not None


@functools.lru_cache(maxsize=4096)
def names_media(name: str) -> bool:
    return NAMES_OF_MEDIA.fullmatch(name.lower()) is not None


@functools.lru_cache(maxsize=4096)
def meaning(name: str) -> str | None:
    """What to do about a key that carries meaning elsewhere; None for every other one."""
    plain = name.strip().lower()
    return next((remedy for names, remedy in MEANS if re.fullmatch(names, plain)), None)


def unused(key: str, remedy: str = "", why: str = "") -> BadRow:
    """A key that carries meaning and has no use, with a line of a registry that gives it one."""
    remedy = f"{remedy}, and " if remedy else ""
    because = f" ({why})" if why else ""
    return BadRow(
        "unused",
        f"{key[:40]!r} would not be used; {SETTINGS}, {remedy}ignore: [{key[:40]}] "
        f"leaves it out{because}",
    )


class Leftover:
    """Keys of a conversation's turns that nothing reads; `ignore` are those that nothing has to."""

    def __init__(self, ignore: Sequence[str]) -> None:
        self.ignore = ignore
        self.names: set[str] = set()
        """Those that are filled; the report lists them."""

    def add(self, key: str, value: Any) -> None:
        """Note a key of a turn that is not used; BadRow where it carries meaning elsewhere."""
        if not filled(value):
            return
        if key in self.ignore:
            self.names.add(key)
            return
        if names_sound(key):
            raise BadRow("modality", f"a turn holds {key}, and no base here hears")
        if not has_no_effect(key, value) and (
            meaning(key) is not None or names_media(key) or key in REPEATS
        ):
            raise unused(key, why="nothing reads it in such a turn")
        self.names.add(key)
