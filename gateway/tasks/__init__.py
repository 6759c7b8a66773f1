"""Tasks are data: a YAML file each, with prompts by family, the answer's schema, parser and limits.

A user adds one by putting a file in a folder; no code is loaded from it. See docs/tasks.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from loraline.errors import UserError
from loraline.profiles.layered_yaml import read_yaml
from loraline.profiles.limits import Strict
from loraline.profiles.loading import complaints

if TYPE_CHECKING:
    from loraline.delivery.tasks import Need

FOLDER = Path(__file__).parent

SHOWING = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
"""Families that see images and videos."""

FAMILIES = (*SHOWING, "text")
DEFAULT = "default"
"""Stands for the families that are not named, and is one: of a model that nothing is known of."""

TEXT_FIRST = ("qwen2.5-vl",)
"""Families whose cookbooks put the text before the image; the others have the image first."""

SPECIAL_TOKENS = ("qwen2-vl",)
"""Families that write boxes with special tokens, which vLLM leaves out by default."""

GIVEN = ("width", "height")
"""Variables that every prompt may use: the image's size in pixels as the model sees it."""

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
LONGEST_VARIABLE = 10_000
"""Characters."""

REPETITION = {"min_pattern_size": 4, "max_pattern_size": 64, "min_count": 24}
"""vLLM's `repetition_detection` in tokens: it ends tables without end. A repetition penalty would
break real ones."""


class PromptError(UserError, LookupError):
    """The given variables do not make a prompt."""


Parser = Literal[
    "text", "json", "boxes", "points", "lines", "html", "markdown", "events", "computer_use",
    "mobile_use",
]  # fmt: skip


class Limits(Strict):
    """What a request of the task may bring, and how long its answer may be."""

    max_new_tokens: PositiveInt = 1024
    min_pixels: PositiveInt = 4 * 28 * 28
    max_pixels: PositiveInt = 2048 * 28 * 28
    """Size of an image after resizing, in pixels."""

    max_images: PositiveInt = 1
    max_frames: PositiveInt = 64
    max_seconds: PositiveFloat = 600
    """Of a video."""


class Task(Strict):
    """One thing that models are asked to do, and how their answers are read."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """The file's stem."""

    title: Annotated[str, Field(min_length=1, max_length=80)]
    description: str
    inputs: Literal["text", "image", "video"]

    prompts: Annotated[dict[str, str], Field(min_length=1)]
    """The user's turn by family; `default` is for all other families."""

    systems: dict[str, str] = Field(default_factory=dict)
    """The system's turn by family; a family without one has no system turn."""

    variables: dict[str, str | None] = Field(default_factory=dict)
    """What a caller may put into the prompt, with its default; null has to be given."""

    answer: Literal["text"] | dict[str, Any]
    """JSON schema of the value that the parser returns, or `text`."""

    parser: Parser
    grid: dict[str, PositiveInt] = Field(default_factory=dict)
    """What coordinates count to where the prompt says so, rather than as the family has it."""

    limits: Limits = Limits()

    @model_validator(mode="after")
    def holds_together(self) -> Self:
        for name in (*self.prompts, *self.systems, *self.grid):
            if name not in (*FAMILIES, DEFAULT):
                accepted = ", ".join((*FAMILIES, DEFAULT))
                raise ValueError(f"unknown family {name!r} (accepted: {accepted})")
        missing = [name for name in SHOWING if name not in self.prompts]
        if missing and DEFAULT not in self.prompts:
            raise ValueError(f"prompts has none for {', '.join(missing)}, and no default")
        for name in self.variables:
            if not PLACEHOLDER.fullmatch(f"{{{name}}}") or name in GIVEN:
                raise ValueError(
                    f"variable {name!r} is refused: lower-case letters, digits and _ make a name, "
                    f"and {', '.join(GIVEN)} are given by the gateway"
                )
        written = "".join([*self.prompts.values(), *self.systems.values()])
        unused = set(self.variables) - set(PLACEHOLDER.findall(written))
        if unused:
            raise ValueError(f"no prompt has a place for variable {{{sorted(unused)[0]}}}")
        if self.limits.min_pixels > self.limits.max_pixels:
            few, many = self.limits.min_pixels, self.limits.max_pixels
            raise ValueError(f"limits.min_pixels {few} is above max_pixels {many}")
        if isinstance(self.answer, dict):
            check_schema(self.answer)
        return self

    def is_for(self, family: str) -> bool:
        """Whether models of the family can be asked: text models see no images."""
        return self.inputs == "text" or family != "text"

    def has_prompt(self, family: str) -> bool:
        return family in self.prompts or DEFAULT in self.prompts

    def prompt(self, family: str, **variables: Any) -> str:
        """The user's turn; PromptError for a variable that is missing, unknown or too long."""
        if not self.is_for(family):
            raise PromptError(
                f"task {self.name} shows the model a {self.inputs}, and family {family!r} sees "
                f"none; accepted: {', '.join(SHOWING)}"
            )
        text = self.prompts.get(family) or self.prompts.get(DEFAULT)
        if text is None:
            raise PromptError(
                f"task {self.name} has no prompt for family {family!r}; accepted: "
                f"{', '.join(self.prompts)}"
            )
        return self.filled(text, variables)

    def system(self, family: str, **variables: Any) -> str | None:
        """The system's turn; None for a family that is asked without one."""
        text = self.systems.get(family) or self.systems.get(DEFAULT)
        return None if text is None else self.filled(text, variables)

    def filled(self, text: str, variables: Mapping[str, Any]) -> str:
        """A prompt with its variables, in one pass: what a caller wrote is not filled again."""
        for name, value in variables.items():
            if name not in self.variables and name not in GIVEN:
                accepted = ", ".join(self.variables) or "none"
                raise PromptError(
                    f"task {self.name} has no variable {name!r}; accepted: {accepted}"
                )
            if value is not None and len(str(value)) > LONGEST_VARIABLE:
                raise PromptError(
                    f"variable {name!r} has {len(str(value)):,} characters, the limit is "
                    f"{LONGEST_VARIABLE:,}"
                )

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in self.variables and name not in GIVEN:
                return match.group()
            value = variables.get(name)
            if value is None:
                value = self.variables.get(name)
            if value is None:
                raise PromptError(f"task {self.name} needs variable {name!r}")
            return str(value)

        return PLACEHOLDER.sub(fill, text)

    def messages(
        self, family: str, media: Sequence[dict[str, Any]] = (), **variables: Any
    ) -> list[dict[str, Any]]:
        """Chat messages with these media parts, in the order that the family was trained with."""
        prompt = {"type": "text", "text": self.prompt(family, **variables)}
        parts = [prompt, *media] if family in TEXT_FIRST else [*media, prompt]
        user = {"role": "user", "content": parts if media else prompt["text"]}
        system = self.system(family, **variables)
        return [user] if system is None else [{"role": "system", "content": system}, user]

    def sampling(self, family: str) -> dict[str, Any]:
        """Fields of a chat request that parsers count on; vLLM's names."""
        fields: dict[str, Any] = {
            "temperature": 0,
            "max_tokens": self.limits.max_new_tokens,
            "repetition_detection": dict(REPETITION),
        }
        if family in SPECIAL_TOKENS:
            fields["skip_special_tokens"] = False
        return fields

    @cached_property
    def _validator(self) -> Any:
        import jsonschema_rs

        return jsonschema_rs.Draft202012Validator(self.answer)

    def complaint(self, value: Any) -> str:
        """What in a value does not keep to the answer's schema; empty if all does."""
        if self.answer == "text":
            return "" if isinstance(value, str) else "the value is no text"
        if self._validator.is_valid(value):
            return ""
        error = next(self._validator.iter_errors(value))
        # Neither the value nor its keys: they are the model's words.
        path = list(error.schema_path)
        return (
            f"the value breaks {path[-1]!r} of the schema, {len(error.instance_path)} levels deep"
        )

    def is_valid(self, value: Any) -> bool:
        return not self.complaint(value)


def check_schema(schema: dict[str, Any]) -> None:
    """ValueError for an invalid JSON schema, or one that refers to another document."""
    import jsonschema_rs

    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if not str(node.get("$ref", "#")).startswith("#"):
                raise ValueError(f"answer refers to {node['$ref']!r}; only '#/…' is read")
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    try:
        jsonschema_rs.Draft202012Validator(schema)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(f"answer is no JSON schema: {str(error).splitlines()[0]}") from None


def load(folder: Path | None = None) -> dict[str, Task]:
    """The built-in tasks, and those of a folder, which replace built-in ones of the same name."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is no folder with task files")
    paths = [*sorted(FOLDER.glob("*.yaml")), *(sorted(folder.glob("*.yaml")) if folder else [])]
    return {path.stem: read(path) for path in paths}


def files(folder: Path | None) -> tuple[tuple[str, str], ...]:
    """Name and text of each task file of a folder; empty without a folder."""
    if folder is None:
        return ()
    load(folder)
    return tuple((path.name, path.read_text()) for path in sorted(folder.glob("*.yaml")))


def needs(names: Sequence[str] = (), folder: Path | None = None) -> tuple[Need, ...]:
    """What these tasks, or all, need of a server; UserError for an unknown name."""
    from loraline.delivery.tasks import Need

    available = load(folder)
    for name in names:
        if name not in available:
            raise UserError(f"task {name!r} is not known; accepted: {', '.join(available)}")
    chosen = [(available[name], available[name].limits) for name in names or available]
    return tuple(
        Need(
            task.name,
            images=limits.max_images if task.inputs == "image" else 0,
            frames=limits.max_frames if task.inputs == "video" else 0,
            min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels,
            answer_tokens=limits.max_new_tokens,
        )
        for task, limits in chosen
    )


def read(path: Path) -> Task:
    """One task file; UserError names what was wrong and what would be accepted."""
    try:
        content = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, found {content!r}")
    try:
        return Task.model_validate({**content, "name": path.stem})
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(complaints(error, Task))}") from error
