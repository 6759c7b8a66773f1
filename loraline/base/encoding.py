"""From rows to tokens: the one place where prompts become what the model sees.

Training, evaluation and the registered model all encode here, with the contract's chat template
and pixel limits, so what was trained is what is measured.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base import templates
from loraline.base.architectures import text_config
from loraline.base.locate import refusing_remote_code
from loraline.base.media import image_pixels, rgb_images, token_types, video_inputs, video_pixels
from loraline.errors import UserError
from loraline.records import Detail, Record, Video

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.locate import Base
    from loraline.contract import Contract

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] "
    "{% if not loop.first and messages[loop.index0 - 1].role == 'system' %}"
    "{{ messages[loop.index0 - 1].content }}\n\n{% endif %}"
    "{{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% elif message.role != 'system' or loop.last or messages[loop.index0 + 1].role != 'user' %}"
    "{{ raise_exception('a system turn has to come right before a user turn') }}"
    "{% endif %}{% endfor %}"
)
"""For bases that come without one, Mistral-7B-v0.1 among them; it travels in the contract."""


LEAD = "\n"
"""Stands before an answer that a tokenizer would otherwise begin with a space; never merged."""

ANSWER = "an answer's place"

BOX_MARKS = re.compile(r"<\|(?:box|object_ref|quad)_(?:start|end)\|>")
"""Control tokens that belong into rows with boxes, as Qwen2-VL writes them."""

IGNORED = -100
"""Label of tokens that are not predicted."""


@dataclass(frozen=True)
class Row:
    """One encoded row: token IDs of the prompt and of the answer with its end token."""

    prompt: list[int]
    answer: list[int]
    images: tuple[bytes, ...] = ()
    """Encoded images; a batch decodes its own, since pixels take a thousand times the memory."""

    earlier: tuple[slice, ...] = ()
    """Answers within the prompt that are learnt as well, each with its end token."""

    videos: tuple[Video, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def learnt_slices(self) -> list[slice]:
        """Places in `prompt + answer` of the tokens that are learnt."""
        return [*self.earlier, slice(len(self.prompt), len(self))]

    @property
    def targets(self) -> int:
        """Number of tokens that are learnt."""
        return sum(answer.stop - answer.start for answer in self.learnt_slices)

    def labels(self) -> list[int]:
        """One for each token: itself where it is learnt, else IGNORED."""
        tokens = self.prompt + self.answer
        labels = [IGNORED] * len(tokens)
        for answer in self.learnt_slices:
            labels[answer] = tokens[answer]
        return labels


class Encoder:
    """Tokenizer or processor of one base, with the chat template and pixel limits to use."""

    def __init__(
        self,
        base: Path,
        modality: str,
        *,
        chat_template: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        from transformers import AutoProcessor, AutoTokenizer

        self.processor: Any = None
        loader = AutoProcessor if modality == "vision" else AutoTokenizer
        with refusing_remote_code(base):
            loaded: Any = loader.from_pretrained(base, trust_remote_code=False)
        if modality == "vision":
            self.processor = loaded
            size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
            self.processor.image_processor.size = size
            self.tokenizer = self.processor.tokenizer
        else:
            self.tokenizer = loaded
        self.box_marks = box_marks(self.tokenizer)
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        self.chat_template = templates.pinned(
            chat_template or templates.default(template) or DEFAULT_CHAT_TEMPLATE
        )
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of {base} has no end-of-sequence token")
        self.end: int = self.tokenizer.eos_token_id
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self.adds_space = backend is not None and "Prepend(" in repr(backend.normalizer)
        """Whether the tokenizer puts a space before every text (SentencePiece's dummy prefix)."""
        self.lead = self._lead()
        pad = self.tokenizer.pad_token_id
        self.pad: int = self.end if pad is None else pad

    @classmethod
    def of(cls, contract: Contract, base: Base) -> Encoder:
        """The encoder that an adapter's contract asks for."""
        return cls(
            base.path,
            contract.modality,
            chat_template=contract.chat_template,
            min_pixels=contract.min_pixels,
            max_pixels=contract.max_pixels,
        )

    def render_turns(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Turns as the chat template renders them; its own complaint is a UserError."""
        with templates.refusals([message["role"] for message in messages]):
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.chat_template, tokenize=False, **options
                )
            )

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _lead(self) -> str:
        """The text to put before an answer so that its tokens are those that it has after a prompt.

        A SentencePiece tokenizer puts a space before every text. An answer that the template puts
        right after a newline would then get a first token that the model never sees there.
        """
        before, both = self._tokens(LEAD), self._tokens(f"{LEAD}a")
        in_context = both[: len(before)] == before and both[len(before) :] != self._tokens("a")
        return LEAD if in_context else ""

    def encode(self, record: Record) -> Row:
        """Tokens of a row; the prompt and the answer are tokenised apart, as the server does it.

        Raises UserError when the chat template does not render the answer after the prompt and
        end it with the end-of-sequence token.
        """
        prompt, answer = self._prompt_and_answer(record)
        if not (record.images or record.videos):
            return Row(self.tokenizer(prompt, add_special_tokens=False).input_ids, answer)
        if prompt.count(getattr(self.processor, "video_token", "\0")) != len(record.videos):
            raise UserError(
                f"the chat template has no place for videos; it rendered {prompt[:400]!r}"
            )
        media: dict[str, Any] = {"images": rgb_images(record.images)} if record.images else {}
        media |= video_inputs(record.videos) if record.videos else {}
        # The call of the server: special tokens are already in the text.
        encoded = self.processor(text=[prompt], **media, add_special_tokens=False)
        tokens = list(encoded["input_ids"][0])
        return Row(tokens, answer, record.images, videos=record.videos)

    def conversation(self, record: Record) -> list[Row]:
        """Rows that learn every answer of a conversation, after exactly what a server would see.

        They are one row where the chat template goes on after an earlier answer as it ended it.
        An answer that it prints in another way once it is history (without its reasoning, as
        Qwen3's does) becomes a separate row. Raises UserError as `encode` does.
        """
        row = self.encode(record)
        turns = record.learnt_turns()[:-1]
        if not turns:
            return [row]
        if record.videos:
            # A video's tokens have times between them, so that history is not found again in them.
            return [*(self.encode(record.until(turn)) for turn in turns), row]
        # An image is one token before the processor repeats it.
        image = self.processor.image_token_id if record.images else None
        firsts = without_repeats(row.prompt, image)
        history = [row.prompt[place] for place in firsts]
        earlier, apart = [], []
        for turn in turns:
            conversation = record.until(turn)
            text, answer = self._prompt_and_answer(conversation)
            prompt = self.tokenizer(text, add_special_tokens=False).input_ids
            start, stop = len(prompt), len(prompt) + len(answer)
            if history[:stop] == prompt + answer:
                earlier.append(slice(firsts[start], firsts[stop - 1] + 1))
            else:
                apart.append(self.encode(conversation))
        return [*apart, replace(row, earlier=tuple(earlier))]

    def continuation(self, tail: str) -> tuple[str, str]:
        """What to tokenise for an answer that goes on behind a prompt, and the lead before it.

        The tokens of the lead, counted alone, are not the answer's.
        """
        if self.adds_space and tail.startswith(" "):
            # The space that the tokenizer puts there is this one.
            return "", tail[1:]
        return self.lead, tail

    def render(self, record: Record) -> tuple[str, str]:
        """A row's prompt, and its answer with all that the chat template puts around it.

        Raises UserError when the template does not render the answer right after the prompt.
        """
        messages, tools = record.prompt(), record.tool_list()
        prompt = self.render_turns(messages, add_generation_prompt=True, tools=tools)
        whole = self.render_turns([*messages, record.answer_turn()], tools=tools)
        return split_off_prompt(prompt, whole)

    def _prompt_and_answer(self, record: Record) -> tuple[str, list[int]]:
        """The prompt as text, and the answer's tokens with the end token."""
        prompt, tail = self.render(record)
        if (record.tools or record.details) and (name := unprinted_part(record, prompt, tail)):
            raise UserError(f"the base's chat template does not print {name}")
        lead, text = self.continuation(tail)
        answer = self._tokens(lead + text)[len(self._tokens(lead)) :]
        if self.end not in answer:
            raise UserError(
                f"the chat template must end the answer with {self.tokenizer.eos_token}; "
                f"it rendered {tail[:400]!r}"
            )
        return prompt, answer[: answer.index(self.end) + 1]

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text, without what the chat template itself puts before an answer."""
        return templates.without_preamble(text_of(self, tokens).strip(), self.preamble)

    @functools.cached_property
    def preamble(self) -> str:
        """What the chat template writes before the last answer and not into the prompt.

        Qwen3's writes an empty reasoning there: part of what is learned, and no part of the answer.
        """
        text: Any = "question"
        if self.processor is not None:
            text = [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": text}]
        prompt = self.render_turns(messages, add_generation_prompt=True)
        whole = self.render_turns([*messages, {"role": "assistant", "content": ANSWER}])
        before, mark, _ = whole.removeprefix(prompt).partition(ANSWER)
        tokens = self._tokens(before) if mark else []
        return text_of(self, tokens).strip()

    def collate(self, rows: Sequence[Row], *, answers: bool, side: str) -> dict[str, Tensor]:
        """Pad rows to one batch: (rows, tokens) tensors, labels where an answer token stands.

        `answers` appends the answers and gives labels; `side` is where the padding goes. Images
        and videos become what `image_pixels` and `video_pixels` give.
        """
        sequences = [row.prompt + row.answer if answers else row.prompt for row in rows]
        labels = [row.labels() for row in rows] if answers else []
        batch = {
            "input_ids": padded(sequences, self.pad, side),
            "attention_mask": padded([[1] * len(sequence) for sequence in sequences], 0, side),
        }
        if answers:
            batch["labels"] = padded(labels, IGNORED, side)
        if self.processor is not None:
            batch["mm_token_type_ids"] = token_types(self.processor, batch["input_ids"])
            if images := [image for row in rows for image in row.images]:
                batch |= image_pixels(self.processor, images)
            if videos := [video for row in rows for video in row.videos]:
                batch |= video_pixels(self.processor, videos)
        return batch


def box_marks(tokenizer: Any) -> dict[int, str]:
    """The control tokens around boxes, by their IDs."""
    added = tokenizer.added_tokens_decoder.items()
    return {n: token.content for n, token in added if BOX_MARKS.fullmatch(token.content)}


def text_of(encoder: Encoder, tokens: Sequence[int]) -> str:
    """An answer's tokens as text, without control tokens but for those around boxes.

    The references of rows with boxes hold them, too.
    """
    return "".join(
        mark * len(list(run))
        if mark
        else str(encoder.tokenizer.decode(list(run), skip_special_tokens=True))
        for mark, run in groupby(tokens, encoder.box_marks.get)
    )


def without_repeats(tokens: Sequence[int], repeated: int | None) -> list[int]:
    """Places of the tokens, of a run of `repeated` the first alone."""
    return [
        place
        for place, token in enumerate(tokens)
        if token != repeated or place == 0 or tokens[place - 1] != repeated
    ]


def padded(sequences: Sequence[list[int]], value: int, side: str) -> Tensor:
    """(sequences, longest) tensor, filled up with `value` on the `side` left or right."""
    import torch

    longest = max(map(len, sequences))
    fillers = [[value] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(
        [
            filler + sequence if side == "left" else sequence + filler
            for sequence, filler in zip(sequences, fillers, strict=True)
        ]
    )


def split_off_prompt(prompt: str, whole: str) -> tuple[str, str]:
    """A prompt, and what the chat template renders after it in the whole row.

    Raises UserError where the whole does not begin with the prompt.
    """
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template must render the answer right after the prompt; "
            f"it rendered {whole[:400]!r}"
        )
    return prompt, whole[len(prompt) :]


def unprinted_part(record: Record, prompt: str, tail: str) -> str | None:
    """The part of a row's tools or answer that a chat template did not print; None if none.

    `tail` is the answer with what the template puts around it. Spaces are ignored.
    """
    prompt, tail = squeezed(prompt), squeezed(tail)
    detail = record.details.get(len(record.messages) - 1, Detail())
    names = [tool["function"]["name"] for tool in record.tool_list() or ()]
    if not all(name in prompt for name in names):
        return "tools"
    if squeezed(record.answer) not in tail:
        return "text beside calls"
    if squeezed(detail.reasoning) not in tail:
        return "reasoning_content"
    called = [call["function"]["name"] for call in json.loads(detail.calls or "[]")]
    if not all(name in tail for name in called):
        return "tool_calls"
    results = [squeezed(text) for role, text in record.messages[:-1] if role == "tool"]
    return None if all(text in prompt for text in results) else "results of tools"


def squeezed(text: str) -> str:
    """A text without its spaces."""
    return "".join(text.split())


def check_tokens(encoder: Encoder, base: Base, rows: Iterable[Row]) -> None:
    """Refuse rows, and padding, with tokens for which the base has no embedding.

    Where a tokenizer has new words and the base was not resized for them, the pass fails halfway,
    on a GPU without an explanation.
    """
    vocabulary = int(text_config(base.config).get("vocab_size", 2**31))
    used = {encoder.pad, encoder.end}.union(*(row.prompt + row.answer for row in rows))
    if strays := sorted(token for token in used if token >= vocabulary):
        named = ", ".join(repr(encoder.tokenizer.convert_ids_to_tokens(t)) for t in strays[:3])
        raise UserError(
            f"the base has embeddings for {vocabulary} tokens and none for {named} of its "
            "tokenizer, which the rows use: take a tokenizer without them, or resize the base's "
            "embeddings and train those first"
        )
