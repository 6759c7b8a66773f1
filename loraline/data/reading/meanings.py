"""Names of columns and of turns' keys that carry meaning in other tools, and what to do about them.

A name is looked at as a whole, and word by word: `query_context` and `queryContext` have the word
`context`. A word that counts, dates or names things makes it a name of no meaning:
`context_length`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

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

GOOD = (
    r"(is_)?(good|chosen|preferred|correct|acceptable|accepted|approved|desirable|helpful|liked"
    r"|best|verified|passed|valid|success(ful)?)|thumbs?_?up|upvoted"
)
"""Keys that say whether an answer is a good one."""

POOR = (
    r"(is_)?(bad|wrong|incorrect|undesirable|unhelpful|disliked|flagged|deleted|toxic|harmful"
    r"|unsafe|hallucinat(ed|ion)|spam)|thumbs?_?down|downvoted"
)
"""Keys that say whether an answer is a bad one."""

LABEL = (
    r"((human|user|completion|response|answer|output|kto)_)?(labels?|feedback|votes?|verdict)"
    r"|kto_tag|preference"
)
"""Keys whose value says which of the two it is."""

LABELS = rf"{LABEL}|{GOOD}|{POOR}"
"""Keys that say in one of these ways whether an answer is good."""

LEARNT = (
    r"(loss(es)?|weights?|train(s|ed|ing|able)?|learn(ed|t|able|ing)?|mask(s|ed)?|supervised?"
    r"|skip(ped)?|ignored?|excluded?)"
)
ABOUT = (
    r"(is|do|no|not|has|to|should|be|use|compute|calculate|on|in|with|from|inputs?|outputs?|tokens?"
    r"|assistants?|answers?|responses?|samples?|rows?|turns?|roles?|examples?|details?|scales?"
    r"|history|labels?|only|last|first|multipliers?|lm)"
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
        r"|scenario|situation|persona(lity|s)?|abstract|search_results?|retrieved(_\w+)?|chunks"
        r"|background_(info|information|knowledge|text)|(source|input|passage|page|ocr)_text"
        r"|ocr(_(tokens|result))?|few_?shots?|demonstrations|(clinical|medical)_notes?"
        r"|(accessibility|a11y|ui|view)_tree|dom",
        IN_THE_QUESTION,
    ),
    (
        r"(answer_|possible_|multiple_|available_)?(choice|option|ending)s?([ _-]?[a-h1-9])?"
        r"|op[a-e]|ans[_-]?[a-e]|[(\[]?[a-g][)\].:]?|distractor[ _-]?\d?"
        r"|(answer_)?candidates?|alternatives|(possible|candidate)_answers|mc[12]_targets",
        CHOOSE,
    ),
    (
        r"(answer|response|output|completion|reply|solution)s?[ _-]?\d|generations"
        r"|(bad|wrong|incorrect|worse|alternative|other|second)_"
        r"(answer|response|output|completion|reply)s?",
        ANSWER,
    ),
    (
        r"(non_)?(chosen|rejected|reject|accept|accepted|preferred|negative|winner|loser)"
        r"(_(response|answer|output|message|text|completion|image)s?)*",
        GOOD_HALF,
    ),
    (LABELS, GOOD_HALF),
    (r"mask_history", LAST),
    (
        rf"(?!masks$)(({ABOUT}|{LEARNT})[_-])*{LEARNT}([_-]({ABOUT}|{LEARNT}))*",
        TURNS_ONLY,
    ),
    (r"(reasoning|thinking|thoughts?|rationales?|chain_of_thought|cot)(_\w+)?", TURNS_ONLY),
    (r"(model_|complex_|long_)?(reasoning|thinking|thought|think|cot)", TURNS_ONLY),
    (r"(tool|function|api)_?(calls?|uses?|invocations?)|refusal", TURNS_ONLY),
    (r"((gt|gold|next|ground_truth)_)?actions?(_(type|inputs?|args?|arguments?|space))?", ANSWER),
    (r"(chat_)?template_kwargs|enable_thinking", TURNS_ONLY),
    (
        r"tools|functions?|plugins|mcp_servers|tool(s|set|box|kit)|available_(tools|functions)"
        r"|(tools?|functions?|apis?|plugins?)_(lists?|definitions?|defs?|schemas?|specs?|json"
        r"|config(uration)?|descriptions?|docs?)",
        TOOLS,
    ),
    (r"system(_(message|prompt|instruction|text))?s?|developer(_message)?", SYSTEM),
    (r"objects|bbox(es)?|boxes|masks|segmentation|(key)?points|polygons?|rles?", BOXES),
    (
        r"(image|img|picture|photo|video|pdf|figure)s?([ _-]?(\d+|bytes|base64))?|file_name"
        r"|depth(_map)?|frames|pixel_values|screenshots?",
        MEDIA,
    ),
)
"""Names of keys that carry meaning elsewhere, as patterns, each with what to do about them."""

WORDS = (
    (("context", "contexts", "ctx", "ctxs", "passage", "passages", "paragraph"), IN_THE_QUESTION),
    (("document", "documents", "evidence", "evidences", "premise", "ddl"), IN_THE_QUESTION),
    (("schema", "transcript", "dialogue"), IN_THE_QUESTION),
    (("reasoning", "thinking", "thought", "thoughts", "cot", "rationale"), TURNS_ONLY),
    (("scratchpad", "monologue"), TURNS_ONLY),
    (("image", "images", "img", "imgs", "picture", "photo", "video", "screenshot"), MEDIA),
)
"""Words that carry meaning in any name, with what to do about it."""

PLAIN = frozenset(
    [
        "id",
        "ids",
        "idx",
        "index",
        "count",
        "counts",
        "num",
        "number",
        "n",
        "length",
        "len",
        "size",
        "sizes",
        "width",
        "height",
        "type",
        "types",
        "format",
        "version",
        "date",
        "time",
        "timestamp",
        "source",
        "sources",
        "hash",
        "md5",
        "sha256",
        "sha",
        "title",
        "titles",
        "lang",
        "language",
        "license",
        "model",
        "dataset",
        "split",
        "domain",
        "category",
        "url",
        "urls",
        "uri",
        "link",
        "links",
        "path",
        "paths",
        "file",
        "filename",
        "name",
        "names",
        "quality",
        "score",
        "scores",
        "start",
        "end",
        "duration",
        "seconds",
        "rate",
        "fps",
        "shape",
        "resolution",
        "ratio",
        "mode",
        "class",
        "author",
        "status",
        "window",
        "caption",
        "captions",
        "description",
        "alt",
        "tag",
        "tags",
        "effort",
        "kg",
    ]
)
"""Words that make a name one of no meaning: they count, date, name or describe something."""

NAMES_OF_MEDIA = re.compile(
    r"(image|img|picture|photo|video|pdf|figure)s?[ _-](path|file|filename|name|url|uri|link)s?"
)
"""Keys that name what a row shows; beside the media themselves they say nothing more."""

SOUNDS = re.compile(
    r"(input_)?(audio|speech|sound|wav|voice)s?([_-]?(path|filepath|file|url|byte|\d+)s?)?"
    r"|mp3|flac|waveform|spectrogram"
)
"""Keys of what no base here can hear."""

FILES_OF_SOUNDS = re.compile(r"\S+\.(wav|mp3|flac|ogg|m4a|opus|aac)", re.IGNORECASE)
FILES_OF_MEDIA = re.compile(
    r"\S+\.(png|jpe?g|webp|gif|bmp|tiff?|heic|avif|mp4|avi|mov|mkv|webm)", re.IGNORECASE
)
LONGEST_NAME = 300
"""Characters of a text that may be a file's name."""

BOXES_OF_IMAGES = re.compile(
    r"(\w+_)?(bbox|box|bounding_?box|polygon|region|roi|crop)(s|es)?(_(2d|3d|xyxy|xywh))?"
    r"|point|coordinates?|coords?|[xy][12]|[xy](min|max)|click_xy|annotations"
)
"""Keys that say where something is in the image beside them."""

ANOTHER_ANSWER = re.compile(
    r"(gold|golden|reference|expected|final|correct|generated|predicted|ground_truth|target"
    r"|deepseek|gpt4?|model|human)_(answer|response|output|completion|solution|target)s?"
    r"|ground_truth"
)
"""Keys of an answer beside the one that is learnt; a short one may be its end."""

OF_TURNS = re.compile(
    r"analysis|explanation|reflection|plan|justification|derivation|channel|recipient|attachments?"
    r"|((is|for)_)?context(_only)?|hidden|files|commentary"
)
"""Keys that change what a turn of a conversation means, and are harmless beside a row."""

SWITCHES = re.compile(
    rf"((is|do|compute|sample|loss)_)?(weight|loss|loss_scale|train|training|trainable|learn)|{GOOD}"
)
"""Keys that say nothing where they are 1 or true."""

MASKS = re.compile(
    r"(is_)?mask(ed)?|mask_history|no_(loss|train)|train_on_inputs?|(is_)?(skip(ped)?|ignored?)"
    rf"|((is|for)_)?context(_only)?|hidden|{POOR}"
)
"""Keys that say nothing where they are 0 or false."""


@functools.lru_cache(maxsize=4096)
def spellings(name: str) -> tuple[str, ...]:
    """A name in small letters, and with `_` between its words: `toolCalls`, `chain-of-thought`."""
    plain = name.strip()
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+", "_", plain).lower()
    return tuple(dict.fromkeys((plain.lower(), apart)))


def words_of(name: str) -> set[str]:
    return set(spellings(name)[-1].split("_"))


def fits(pattern: re.Pattern[str], name: str) -> bool:
    return any(pattern.fullmatch(spelt) for spelt in spellings(name))


def has_no_effect(name: str, value: Any) -> bool:
    """Whether a key that says what is learnt has the value that all turns have without it."""
    if not isinstance(value, bool | int | float):
        return False
    return (value == 1 and fits(SWITCHES, name)) or (value == 0 and fits(MASKS, name))


@functools.lru_cache(maxsize=4096)
def meaning(name: str) -> str | None:
    """What to do about a key that carries meaning elsewhere; None for every other one."""
    for spelt in spellings(name):
        for names, remedy in MEANS:
            if re.fullmatch(names, spelt):
                return remedy
    words = words_of(name)
    if words & PLAIN:
        return None
    return next((remedy for some, remedy in WORDS if words.intersection(some)), None)


@functools.lru_cache(maxsize=4096)
def names_sound(name: str) -> bool:
    words = words_of(name)
    return fits(SOUNDS, name) or (bool(words & {"audio", "audios"}) and not words & PLAIN)


@functools.lru_cache(maxsize=4096)
def names_media(name: str) -> bool:
    return fits(NAMES_OF_MEDIA, name)


@functools.lru_cache(maxsize=4096)
def is_a_box(name: str) -> bool:
    return fits(BOXES_OF_IMAGES, name)


@functools.lru_cache(maxsize=4096)
def is_another_answer(name: str) -> bool:
    return fits(ANOTHER_ANSWER, name)


@functools.lru_cache(maxsize=4096)
def is_poor(name: str) -> bool:
    """Whether a key says of an answer that it is a bad one."""
    return fits(re.compile(POOR), name)


@functools.lru_cache(maxsize=4096)
def is_a_label(name: str) -> bool:
    """Whether a key's value says that an answer is good or bad."""
    return fits(re.compile(LABELS), name)


@functools.lru_cache(maxsize=4096)
def is_of_a_turn(name: str) -> bool:
    return fits(OF_TURNS, name)


def holds_a_sound(value: Any) -> bool:
    """Whether a value is a sound: a file's name, several, or samples as datasets holds them."""
    if isinstance(value, dict):
        return "sampling_rate" in value
    return is_a_file(value, FILES_OF_SOUNDS)


def holds_media(value: Any) -> bool:
    """Whether a value is an image or a video: a file's name, several, or what a file holds."""
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    return is_a_file(value, FILES_OF_MEDIA)


def is_a_file(value: Any, names: re.Pattern[str]) -> bool:
    """Whether a value is a file's name, or a list of some."""
    if isinstance(value, list) and value:
        value = value[0]
    return (
        isinstance(value, str)
        and "." in value[-5:]
        and len(value) <= LONGEST_NAME
        and names.fullmatch(value) is not None
    )
