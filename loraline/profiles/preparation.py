"""What a profile says about its data: sources, and what prepare_data does with their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from loraline.profiles.limits import Strict

Coordinates = Literal["pixels", "unit", "thousand"]


def share_or_count(value: Any, number: ValidatorFunctionWrapHandler, at: ValidationInfo) -> float:
    """A held-out share up to 0.4, or a whole number of rows; ValueError for anything else."""
    try:
        held_out: float = number(value)
    except ValidationError:
        held_out = 0
    if isinstance(held_out, int) and held_out >= 1:
        return held_out
    if isinstance(held_out, float) and 0 < held_out <= 0.4:
        return held_out
    raise ValueError(
        f"split.{at.field_name}: {value!r} is refused, write a share of up to 0.4 or a whole "
        "number of rows"
    )


HeldOut = Annotated[float | int, WrapValidator(share_or_count)]
"""A share of the rows, or at least so many of them."""


class Split(Strict):
    """Rows to hold out where no file is named after a split: a share, or a number of rows."""

    validation: HeldOut = 0.1
    """For the loss after each epoch, which chooses the adapter."""

    test: HeldOut = 0.1
    """For evaluation and the gate."""


def from_black_to_white(window: tuple[float, float]) -> tuple[float, float]:
    if not window[0] < window[1]:
        raise ValueError("the first value is black and lies below the second, which is white")
    return window


class SourceSettings(Strict):
    """How the rows of a source are read."""

    columns: Mapping[str, str] = {}
    """Our name of a column to the source's, as in `question: ask`, or to a template of several."""

    ignore: tuple[str, ...] = ()
    """Columns that are left out on purpose."""

    turns: Mapping[str, str] = {}
    """Our name of a turn's keys (`role`, `content`) and roles to the source's."""

    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt."""

    preference: Literal["good"] | None = None
    """`good` learns the chosen answers of preference data; null refuses such data."""

    media: str | None = None
    """Folder that media are named from; null is the data file's own."""

    window: Annotated[tuple[float, float], AfterValidator(from_black_to_white)] | None = None
    """Values of a grey picture of more than 8 bits that are black and white; null: its own."""

    encoding: str = ""
    """Of text files that are not UTF-8, as Python names it."""

    boxes: Coordinates | None = None
    """Coordinates of bounding boxes in the rows; null leaves numbers alone."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Entry(SourceSettings):
    """One source as asked for: in the registry, in a profile, or by a flag."""

    uri: str = Field(min_length=1)
    """Path, s3://, hf://, dvc:// or mlflow://."""

    sample: str = Field("", pattern=r"^(%\d+(\.\d+)?|#0*[1-9]\d*)?$")
    """`%50` takes about half of the rows, `#2000` takes 2,000; chosen by content."""

    weight: PositiveFloat = 1
    """How often a training row of this source stands in the dataset; 0.5 keeps half of them."""

    split: Literal["train", "validation", "test"] | None = None
    """The split that all rows go to; null goes by file names, or by content."""

    _columns_from: str = PrivateAttr("`columns`")

    @property
    def columns_from(self) -> str:
        """Where the names of `columns` were given, for messages."""
        return self._columns_from

    def with_columns_from(self, place: str) -> Entry:
        """The same source, with the place where its columns were named, if they were."""
        if not self.columns:
            return self
        named = self.model_copy()
        named._columns_from = place
        return named


def as_entry(value: Any) -> Any:
    """A source that is written as a text is its address, as --data takes it."""
    return {"uri": value} if isinstance(value, str) else value


Named = Annotated[str, Field(min_length=1)]


class Prepare(SourceSettings):
    """Options of prepare_data; a flag of its command line counts instead.

    Its settings of a source apply to every source that does not set them itself.
    """

    sources: tuple[Annotated[Entry, BeforeValidator(as_entry)], ...] = ()
    """What is read when no --data is given, in place of the key `data`."""

    prompt: Named | None = None
    """`prompts:/name/version`, `prompts:/name@alias` or a file; null is prompt.txt by the data."""

    checks: Mapping[str, Literal["fail", "drop", "repair", "keep"]] = {}
    """What a check does with a row, by its name."""

    limits: Mapping[str, PositiveInt | PositiveFloat] = {}
    """What is too much, by the limit's name."""

    group_by: Named = "answer"
    """What keeps rows in one split: `answer`, `row`, or a column."""
