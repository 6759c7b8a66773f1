"""Chat templates, rendered for a million rows.

A template is a program, and running it takes longer than counting the tokens it makes. Where its
source says that it prints the contents of turns and looks at nothing but their roles, it is run
once for each order of roles, and the contents are put in their places.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from loraline.base import templates
from loraline.errors import UserError
from loraline.records import Record

TYPES = {"string", "defined", "undefined", "none", "mapping", "sequence", "iterable", "boolean"}
"""Tests of a value's type, the same for every text."""

NEIGHBOURS = {"previtem", "nextitem", "changed"}
"""Members of a template's `loop` through which it reaches turns."""

Frame = list[str | int]
"""Constant strings, and the numbers of the turns whose contents stand between them."""


class Value(Enum):
    """What an expression in a template stands for."""

    CONSTANT = auto()
    """Something that no content has a part in."""

    CONTENT = auto()
    """The content of a turn, or a text with it."""

    TURN = auto()
    TURNS = auto()


class ContentInspected(Exception):
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
    with something else than space, which it may strip. This one only prints:

        {% for turn in messages %}<|{{ turn.role }}|>{{ turn.content | trim }}{% endfor %}

    This one inspects the content, so each row is rendered:

        {% for turn in messages %}{% if "think" in turn.content %}...{% endif %}{% endfor %}

    What names may stand for is inferred by following all statements, again and again until nothing
    new is learnt: a later statement may give a name another value in a loop's next pass.
    """
    names, before = {"messages": Value.TURNS}, dict[str, Value]()
    try:
        while before != names:
            before = dict(names)
            infer_statements(template.body, names)
    except ContentInspected:
        return False
    return True


def infer_statements(statements: Sequence[nodes.Node], names: dict[str, Value]) -> None:
    """Note in `names` which values statements give to names.

    Raises ContentInspected where a statement does more with contents than print them.
    """
    for statement in statements:
        if isinstance(statement, nodes.Output):
            for printed in statement.nodes:
                require(infer(printed, names), Value.CONSTANT, Value.CONTENT)
        elif isinstance(statement, nodes.If):
            infer(statement.test, names)
            branches = [*statement.body, *statement.elif_, *statement.else_]
            infer_statements(branches, names)
        elif isinstance(statement, nodes.For):
            iterated = require(infer(statement.iter, names), Value.CONSTANT, Value.TURNS)
            bind(names, statement.target, Value.TURN if iterated == Value.TURNS else iterated)
            if statement.test:
                infer(statement.test, names)
            infer_statements([*statement.body, *statement.else_], names)
        elif isinstance(statement, nodes.Assign):
            bind(names, statement.target, infer(statement.node, names))
        else:
            raise ContentInspected


def bind(names: dict[str, Value], target: nodes.Node, value: Value) -> None:
    """Give a name a value. It may be a constant here and a content there, which is a content."""
    if not isinstance(target, nodes.Name):
        require(value, Value.CONSTANT)
        return
    known = names.setdefault(target.name, value)
    if known != value:
        require(known, Value.CONSTANT, Value.CONTENT)
        require(value, Value.CONSTANT, Value.CONTENT)
        names[target.name] = Value.CONTENT


def require(value: Value, *allowed: Value) -> Value:
    """The value, if it is one of those allowed here; else ContentInspected."""
    if value not in allowed:
        raise ContentInspected
    return value


def infer(node: nodes.Node, names: dict[str, Value]) -> Value:
    """What an expression stands for; ContentInspected where it does more than pass contents on."""
    match node:
        case nodes.Name():
            return names.get(node.name, Value.CONSTANT)
        case nodes.Getattr():
            return member(infer(node.node, names), node.attr)
        case nodes.Getitem():
            require(infer(node.arg, names), Value.CONSTANT)
            return member(infer(node.node, names), node.arg)
        case nodes.Not():
            infer(node.node, names)
            return Value.CONSTANT
        case nodes.CondExpr():
            infer(node.test, names)
            return infer_text([node.expr1, node.expr2], names)
        case nodes.And() | nodes.Or() | nodes.Add():
            return infer_text([node.left, node.right], names)
        case nodes.Concat():
            return infer_text(node.nodes, names)
        case nodes.Test() if node.name in TYPES:
            infer(node.node, names)
            return Value.CONSTANT
        case nodes.Filter(name="trim", node=nodes.Expr() as filtered, args=[], kwargs=[]):
            return require(infer(filtered, names), Value.CONSTANT, Value.CONTENT)
        case nodes.Filter(name="length", node=nodes.Expr() as filtered):
            require(infer(filtered, names), Value.CONSTANT, Value.TURNS)
            return Value.CONSTANT
        case nodes.Call(node=nodes.Getattr(attr="strip") as method, args=[], kwargs=[]):
            return require(infer(method.node, names), Value.CONSTANT, Value.CONTENT)
    for child in node.iter_child_nodes():
        require(infer(child, names), Value.CONSTANT)
    return Value.CONSTANT


def infer_text(parts: Sequence[nodes.Node | None], names: dict[str, Value]) -> Value:
    """What a text stands for that is one of several parts, or all of them in a row."""
    values = [require(infer(part, names), Value.CONSTANT, Value.CONTENT) for part in parts if part]
    return Value.CONTENT if Value.CONTENT in values else Value.CONSTANT


def member(owner: Value, key: str | nodes.Node) -> Value:
    """What an attribute or an item of a value stands for."""
    name = key.value if isinstance(key, nodes.Const) else key
    if owner == Value.TURNS and isinstance(key, nodes.Node):
        return Value.TURNS if isinstance(key, nodes.Slice) else Value.TURN
    if owner == Value.TURN and isinstance(name, str) and not hasattr(dict, name):
        return Value.CONTENT if name == "content" else Value.CONSTANT
    if name in NEIGHBOURS:
        raise ContentInspected
    return require(owner, Value.CONSTANT)
