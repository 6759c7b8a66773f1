"""Length of rows in tokens, as the model will see them, without making their pixels."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base import pixels
from loraline.base.encoding import BOX_MARKS
from loraline.base.locate import TOKENIZER_FILES
from loraline.data.checks import BadRow
from loraline.data.facts import answer_of
from loraline.errors import UserError
from loraline.records import TAGS, Record

if TYPE_CHECKING:
    from loraline.profiles.profile import Profile

BYTES_A_TOKEN = 3.6
"""Bytes per token of English prose with Mistral's and Qwen's vocabularies; for the estimate."""

TURN_TOKENS = 5
"""Tokens that a chat template adds to a turn; only for the estimate."""

Size = tuple[int, int]
"""Height and width of an image in pixels."""


def tokenizer_folder(base: str, revision: str | None) -> Path | None:
    """Folder with the base's tokenizer, fetched from the hub if need be; None if out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if Path(base).is_dir():
        names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        return Path(base) if any(Path(base, name).is_file() for name in names) else None
    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=TOKENIZER_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None


class Estimate:
    """Lengths of rows whose base is out of reach: bytes of text, and the size rule for images."""

    def __init__(self, recipe: Profile) -> None:
        self.cell = pixels.cell(recipe.base)
        self.limits = (recipe.min_pixels or 0, recipe.max_pixels or 2**31)

    controls = None
    shows_videos = True

    def measure(
        self, rows: Sequence[Record], sizes: Sequence[Sequence[Size]]
    ) -> list[tuple[int, int]]:
        """(tokens of the row, tokens of its answer) for each row."""
        return [self.row(row, media) for row, media in zip(rows, sizes, strict=True)]

    def row(self, row: Record, sizes: Sequence[Size]) -> tuple[int, int]:
        def text(content: str) -> int:
            return TURN_TOKENS + math.ceil(len(TAGS.sub("", content).encode()) / BYTES_A_TOKEN)

        tokens = sum(self.image(size) for size in sizes[: len(row.images)])
        for video, size in zip(row.videos, sizes[len(row.images) :], strict=True):
            tokens += self.image(size) * math.ceil(len(video.frames) / 2)
        tokens += sum(text("".join(detail[:2])) for detail in row.details.values())
        tokens += text(row.tools) if row.tools else 0
        return tokens + sum(text(content) for _, content in row.messages), text(answer_of(row))

    def check_rendered(self, row: Record) -> None:
        """What a chat template does with a row is not known without it."""

    def image(self, size: Size) -> int:
        low, high = self.limits
        return 2 + pixels.image_tokens(*size, cell=self.cell, min_pixels=low, max_pixels=high)


class Exact:
    """Lengths by the base's own tokenizer, chat template and processor.

    The same numbers as `encoding.Encoder.encode`, which a test holds against it, and
    quicker: tokens are counted by words, and images by their size.
    """

    def __init__(self, folder: Path, recipe: Profile) -> None:
        from loraline.base.encoding import Encoder
        from loraline.base.rendering import Renderer
        from loraline.data.lengths.counting import counter

        try:
            self.encoder = Encoder(
                folder, recipe.modality, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the tokenizer of {recipe.base!r} cannot be loaded: {reason}"
            ) from error
        self.renderer = Renderer(self.encoder)
        self.image = functools.lru_cache(maxsize=4096)(self._image)
        tokenizer = self.encoder.tokenizer
        self.counter = counter(tokenizer.backend_tokenizer)
        self.end: str = tokenizer.eos_token

    @functools.cached_property
    def controls(self) -> re.Pattern[str] | None:
        """Pattern of texts that the tokenizer reads as control tokens."""
        added = self.encoder.tokenizer.added_tokens_decoder.values()
        special = sorted(
            token.content
            for token in added
            if token.special and token.content and not BOX_MARKS.fullmatch(token.content)
        )
        return re.compile("|".join(map(re.escape, special))) if special else None

    @functools.cached_property
    def shows_videos(self) -> bool:
        """Whether the chat template has a place for a video that the processor knows."""
        token = getattr(self.encoder.processor, "video_token", None)
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
        return token is not None and token in self.encoder.render_turns(
            messages, add_generation_prompt=True
        )

    def measure(
        self, rows: Sequence[Record], sizes: Sequence[Sequence[Size]]
    ) -> list[tuple[int, int]]:
        """(tokens of the row, tokens of its answer) for each row."""
        if not rows:
            return []
        pairs = self.renderer.render(rows)
        prompts = [prompt for prompt, _ in pairs]
        leads, answers = zip(*(self.up_to_the_end(tail) for _, tail in pairs), strict=True)
        counts = self.counts([*prompts, *map("".join, zip(leads, answers, strict=True))])
        lengths = []
        for row, prompt, media, before, answer, lead in zip(
            rows, prompts, sizes, counts[: len(rows)], counts[len(rows) :], leads, strict=True
        ):
            answer -= self.lead_tokens if lead else 0
            if row.videos:
                before = self.with_videos(prompt, row)
            elif media:
                # Each placeholder, one token, is repeated as often as its image needs.
                before += sum(self.image(size) - 1 for size in media)
            lengths.append((before + answer, answer))
        return lengths

    def check_rendered(self, row: Record) -> None:
        """Raise BadRow of the check `unused` where the chat template leaves something out.

        For every answer that is learnt, the template has to print the tools and the answer's text,
        reasoning and calls. It may refuse a row, too.
        """
        from loraline.base import encoding

        for turn in row.learnt_turns():
            conversation = row.until(turn) if turn < len(row.messages) - 1 else row
            try:
                prompt, tail = self.encoder.render(conversation)
            except (TypeError, UserError) as error:
                raise BadRow(
                    "unused", f"the base's chat template refuses it: {excerpt(error)}"
                ) from None
            if name := encoding.unprinted_part(conversation, prompt, tail):
                raise BadRow("unused", f"the base's chat template does not print {name}")

    def up_to_the_end(self, tail: str) -> tuple[str, str]:
        """The lead to tokenise before an answer, and the answer up to the end-of-sequence token."""
        end = tail.find(self.end)
        if end < 0:
            raise UserError(
                f"the chat template must end the answer with {self.end}; it rendered {tail[:400]!r}"
            )
        return self.encoder.continuation(tail[: end + len(self.end)])

    @functools.cached_property
    def lead_tokens(self) -> int:
        """Tokens of the lead, which is tokenised with an answer and does not belong to it."""
        return self.counts([self.encoder.lead])[0]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        if self.counter is not None:
            return list(self.counter.counts(texts).tolist())
        backend = self.encoder.tokenizer.backend_tokenizer
        return [
            len(tokens) for tokens in backend.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def with_videos(self, prompt: str, row: Record) -> int:
        """Tokens of a prompt that shows videos, by the processor itself: it also writes times."""
        from loraline.base.media import rgb_images, video_inputs

        if prompt.count(self.encoder.processor.video_token) != len(row.videos):
            raise UserError(
                f"the chat template has no place for videos; it rendered {prompt[:400]!r}"
            )
        encoded = self.encoder.processor(
            text=[prompt],
            images=rgb_images(row.images) or None,
            **video_inputs(row.videos),
            add_special_tokens=False,
        )
        return len(encoded["input_ids"][0])

    def _image(self, size: Size) -> int:
        processor: Any = self.encoder.processor.image_processor
        return int(processor.get_number_of_image_patches(*size)) // processor.merge_size**2


def excerpt(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


Lengths = Exact | Estimate


def lengths(folder: Path | None, recipe: Profile) -> Lengths:
    """Exact lengths when the base's files are here, or else the estimate."""
    return Estimate(recipe) if folder is None else Exact(folder, recipe)
