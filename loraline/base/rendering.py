"""Many rows rendered by one run of a chat template.

`apply_chat_template` sets a template up for each conversation, which takes several times as long as
printing it. Here the template stands in a loop over conversations, so that it is set up once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraline.base import templates
from loraline.base.encoding import split_off_prompt
from loraline.errors import UserError
from loraline.records import Record

if TYPE_CHECKING:
    from loraline.base.encoding import Encoder

CONVERSATIONS = "loraline_conversations"
"""The name of what the loop goes over, that no template uses."""

MARK = "\0end of a conversation\0"
"""What the loop prints after each conversation."""

BATCH = 256
"""Rows in one run of the template; more are not faster, and each is in memory twice."""

Turns = list[dict[str, Any]]


def looped_template(template: str) -> str | None:
    """The template inside a loop over conversations and their tools.

    None where the loop would change what it renders: it reads a `loop` variable of its own
    surroundings, or it may hold more than plain Jinja. transformers sets trim_blocks, which drops
    the newline after the loop's tag, so the template still begins a line.
    """
    from jinja2 import Environment, TemplateError, meta

    try:
        parsed = Environment(autoescape=True, extensions=["jinja2.ext.loopcontrols"]).parse(
            template
        )
    except TemplateError:
        return None
    if meta.find_undeclared_variables(parsed) & {"loop", CONVERSATIONS} or MARK in template:
        return None
    body = template.removesuffix("\n")
    return f"{{% for messages, tools in {CONVERSATIONS} %}}\n{body}{MARK}{{% endfor %}}"


class Renderer:
    """Renders rows as `Encoder.render` does, many at once.

    The first row of each order of roles is rendered by itself, too. If the loop renders it
    differently, all rows are rendered one by one.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.looped = looped_template(encoder.chat_template)
        self.checked: set[tuple[str, ...]] = set()

    def render(self, rows: Sequence[Record]) -> list[tuple[str, str]]:
        """Prompts, and answers with the template's text around them; raises as `Encoder.render`."""
        pairs: list[tuple[str, str]] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            pairs += self.render_batch(batch) or map(self.encoder.render, batch)
        return pairs

    def render_batch(self, rows: Sequence[Record]) -> list[tuple[str, str]] | None:
        """The pairs of some rows; None where each has to be rendered alone."""
        conversations = [(row.prompt(), row.tool_list()) for row in rows]
        prompts = self.run(conversations, add_generation_prompt=True)
        wholes = self.run(
            [
                ([*messages, row.answer_turn()], tools)
                for row, (messages, tools) in zip(rows, conversations, strict=True)
            ]
        )
        if prompts is None or wholes is None:
            return None
        try:
            pairs = list(map(split_off_prompt, prompts, wholes))
        except UserError:
            return None
        for row, pair in zip(rows, pairs, strict=True):
            roles = tuple([role for role, _ in row.messages])
            if roles not in self.checked:
                if pair != self.encoder.render(row):
                    self.looped = None
                    return None
                self.checked.add(roles)
        return pairs

    def run(
        self, conversations: Sequence[tuple[Turns, Turns | None]], **options: bool
    ) -> list[str] | None:
        """What one run of the template prints for each; None if it refuses any, or prints MARK."""
        if self.looped is None:
            return None
        try:
            with templates.refusals([]):
                text = self.encoder.tokenizer.apply_chat_template(
                    # The loop puts each conversation in the place of this one.
                    conversations[0][0],
                    chat_template=self.looped,
                    tokenize=False,
                    **{CONVERSATIONS: conversations},
                    **options,
                )
        except UserError:
            return None
        printed = str(text).split(MARK)[:-1]
        return printed if len(printed) == len(conversations) else None
