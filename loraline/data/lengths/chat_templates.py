"""Chat templates, rendered for a million rows.

A template is a program, and running it takes longer than counting the tokens it makes. Where its
source says that it prints the contents of turns and looks at nothing but their roles, it is run
once for each order of roles, and the contents are put in their places.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from loraline.base import templates
from loraline.errors import UserError
from loraline.records import Record

CONSTANT, TEXT, TURN, TURNS = "", "text", "turn", "turns"
"""What a value in a template may hold: nothing of the texts, a turn's content, a turn, turns."""

TYPES = {"string", "defined", "undefined", "none", "mapping", "sequence", "iterable", "boolean"}
"""Tests of a value's type, the same for every text."""

Frame = list[str | int]
"""Constant strings, and the numbers of the turns whose contents stand between them."""


class Looks(Exception):
    """A template does more with contents than print them."""


class Template:
    """One chat template with what the tokenizer gives it; the tokenizer renders the same."""

    def __init__(self, source: str, tokenizer: Any) -> None:
        self.compiled = _compile_jinja_template(source)
        # What apply_chat_template makes for every row anew.
        self.names = {
            **self.compiled.globals,
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
        }
        self.prints = only_prints(self.compiled.environment.parse(source))
        self.frames = functools.lru_cache(maxsize=1024)(self._frames)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> str:
        names = {**self.names, "messages": messages, "add_generation_prompt": add_generation_prompt}
        names["tools"] = tools
        context = self.compiled.new_context(names, shared=True)
        with templates.refusals([message["role"] for message in messages]):
            return "".join(self.compiled.root_render_func(context))

    def pair(self, row: Record) -> tuple[str, str]:
        """A row's prompt, and its answer with all that the template puts around it.

        Raises UserError when the template does not render the answer right after the prompt.
        """
        if self.prints and not (row.images or row.videos or row.tools or row.details):
            roles, texts = zip(*row.messages, strict=True)
            # Some templates strip contents, and some leave empty ones out.
            if "" not in texts and texts == tuple(map(str.strip, texts)):
                prompt, tail = self.frames(roles)
                return filled(prompt, texts), filled(tail, texts)
        return self.parted(row.prompt(), row.answer_turn(), row.tool_list())

    def parted(
        self,
        messages: list[dict[str, Any]],
        answer: dict[str, Any],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[str, str]:
        prompt = self.render(messages, True, tools)
        whole = self.render([*messages, answer], False, tools)
        if not whole.startswith(prompt):
            raise UserError(
                "the chat template must render the answer right after the prompt; "
                f"it rendered {whole[:400]!r}"
            )
        return prompt, whole[len(prompt) :]

    def _frames(self, roles: tuple[str, ...]) -> tuple[Frame, Frame]:
        """Frames of the prompt and of the rest, for turns of these roles."""
        turns = [{"role": role, "content": f"\0{number}\0"} for number, role in enumerate(roles)]
        prompt, tail = self.parted(turns[:-1], turns[-1])
        return frame(prompt), frame(tail)


def frame(rendered: str) -> Frame:
    pieces = re.split("\0([0-9]+)\0", rendered)
    return [int(piece) if odd % 2 else piece for odd, piece in enumerate(pieces)]


def filled(pieces: Frame, texts: Sequence[str]) -> str:
    return "".join([piece if isinstance(piece, str) else texts[piece] for piece in pieces])


def only_prints(template: nodes.Template) -> bool:
    """Whether a template prints contents and does nothing else with them.

    Then what it prints around them is the same for all texts that are not empty and begin and end
    with something else than space, which it may strip.
    """
    names, before = {"messages": TURNS}, dict[str, str]()
    try:
        while before != names:
            before = dict(names)
            follow(template.body, names)
    except Looks:
        return False
    return True


def follow(body: Sequence[nodes.Node], names: dict[str, str]) -> None:
    """Note in `names` what statements let them hold; Looks where contents are more than printed."""
    for node in body:
        if isinstance(node, nodes.Output):
            for printed in node.nodes:
                allow(kind(printed, names), CONSTANT, TEXT)
        elif isinstance(node, nodes.If):
            kind(node.test, names)
            follow([*node.body, *node.elif_, *node.else_], names)
        elif isinstance(node, nodes.For):
            turns = allow(kind(node.iter, names), CONSTANT, TURNS)
            hold(names, node.target, TURN if turns else CONSTANT)
            if node.test:
                kind(node.test, names)
            follow([*node.body, *node.else_], names)
        elif isinstance(node, nodes.Assign):
            hold(names, node.target, kind(node.node, names))
        else:
            raise Looks


def hold(names: dict[str, str], target: nodes.Node, held: str) -> None:
    """A name holds one kind of value wherever it stands; a text may also be a constant."""
    if not isinstance(target, nodes.Name):
        allow(held, CONSTANT)
        return
    known = names.setdefault(target.name, held)
    if known != held:
        allow(known, CONSTANT, TEXT)
        allow(held, CONSTANT, TEXT)
        names[target.name] = TEXT


def allow(found: str, *kinds: str) -> str:
    if found not in kinds:
        raise Looks
    return found


def kind(node: nodes.Node, names: dict[str, str]) -> str:
    """What an expression's value holds; Looks where a content is more than printed."""
    match node:
        case nodes.Name():
            return names.get(node.name, CONSTANT)
        case nodes.Getattr():
            return member(kind(node.node, names), node.attr)
        case nodes.Getitem():
            allow(kind(node.arg, names), CONSTANT)
            return member(kind(node.node, names), node.arg)
        case nodes.Not():
            kind(node.node, names)
            return CONSTANT
        case nodes.CondExpr():
            kind(node.test, names)
            return joined([node.expr1, node.expr2], names)
        case nodes.And() | nodes.Or() | nodes.Add():
            return joined([node.left, node.right], names)
        case nodes.Concat():
            return joined(node.nodes, names)
        case nodes.Test() if node.name in TYPES:
            kind(node.node, names)
            return CONSTANT
        case nodes.Filter(name="trim", node=nodes.Expr() as inner, args=[], kwargs=[]):
            return allow(kind(inner, names), CONSTANT, TEXT)
        case nodes.Filter(name="length", node=nodes.Expr() as inner):
            allow(kind(inner, names), CONSTANT, TURNS)
            return CONSTANT
        case nodes.Call(node=nodes.Getattr(attr="strip") as called, args=[], kwargs=[]):
            return allow(kind(called.node, names), CONSTANT, TEXT)
    for child in node.iter_child_nodes():
        allow(kind(child, names), CONSTANT)
    return CONSTANT


def joined(values: Sequence[nodes.Node | None], names: dict[str, str]) -> str:
    """What holds one of several values, or all of them in a row."""
    kinds = [allow(kind(value, names), CONSTANT, TEXT) for value in values if value]
    return TEXT if TEXT in kinds else CONSTANT


def member(held: str, key: str | nodes.Node) -> str:
    """What an attribute or item of a value holds."""
    name = key.value if isinstance(key, nodes.Const) else key
    if held == TURNS and isinstance(key, nodes.Node):
        return TURNS if isinstance(key, nodes.Slice) else TURN
    if held == TURN and isinstance(name, str) and not hasattr(dict, name):
        return TEXT if name == "content" else CONSTANT
    if name in ("previtem", "nextitem", "changed"):
        raise Looks
    return allow(held, CONSTANT)
