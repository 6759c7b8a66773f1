"""Encode a dataset's training and validation rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraline.base import architectures
from loraline.base.encoding import Encoder, Row, check_tokens
from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile


def check_positions(recipe: Profile, base: Base, longest: int) -> None:
    """Refuse, before it is trained, what the server would refuse: rows longer than the base."""
    most, needed = architectures.positions(base.config), longest + recipe.max_new_tokens
    if most is not None and needed > most:
        raise UserError(
            f"the longest row has {longest} tokens and an answer up to {recipe.max_new_tokens}, "
            f"together more than the base's {most} positions, which vLLM refuses; lower "
            "max_length or max_new_tokens"
        )


def load_rows(
    dataset: Path, recipe: Profile, base: Base
) -> tuple[Encoder, str, dict[str, list[Row]], dict[str, int]]:
    """Encode the training and validation rows; those over max_length are dropped, never cut.

    Returns the encoder, the prompt template, and by split the rows and the number dropped.
    """
    from loraline import records
    from loraline.process import progress

    encoder = Encoder(
        base.path, recipe.modality, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
    )
    fitting: dict[str, list[Row]] = {}
    dropped: dict[str, int] = {}
    for split in ("train", "validation"):
        split_records = records.read(dataset / f"{split}.parquet")
        has_media = any(record.images or record.videos for record in split_records)
        # A vision set may hold rows of text alone, a text set nothing else.
        if has_media != (recipe.modality == "vision") and (has_media or split == "train"):
            raise UserError(f"the dataset of --run-id does not fit modality {recipe.modality}")
        rows: list[Row] = []
        with progress.bar(f"encode {split}", len(split_records)) as advance:
            for record in split_records:
                rows += encoder.conversation(record)
                advance(1, "")
        fitting[split] = [row for row in rows if len(row) <= recipe.max_length]
        dropped[split] = len(rows) - len(fitting[split])
        if not fitting[split]:
            raise UserError(
                f"every {split} row is longer than max_length {recipe.max_length}; "
                f"the shortest has {min(map(len, rows))} tokens"
            )
    check_tokens(encoder, base, [*fitting["train"], *fitting["validation"]])
    check_positions(recipe, base, max(len(row) for split in fitting.values() for row in split))
    return encoder, (dataset / "prompt.txt").read_text(encoding="utf-8"), fitting, dropped
