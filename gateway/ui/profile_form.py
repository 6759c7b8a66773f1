"""A profile as a form: a field for each key, and which values differ from the profile's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from gateway.ui import drawing


class ProfileForm:
    """The fields are drawn anew for each profile, from what the desk says of its keys."""

    def __init__(self, _: Callable[[str], str]) -> None:
        self.text = _
        self.keys = gr.State({})
        """State: the desk's answer, whose `fields` are the profile's keys."""

        self.changed = gr.State({})
        """State: values by key, of those that differ from the profile's."""

        with gr.Accordion(_("Settings of the profile"), open=False):
            self.fields = gr.Column()
        self.overrides = gr.HTML(elem_id="train-overrides")

    @property
    def outputs(self) -> list[Any]:
        return [self.keys, self.changed, self.overrides]

    def wire(self) -> None:
        with self.fields:
            gr.render(inputs=[self.keys], triggers=[self.keys.change], show_progress="hidden")(
                self.draw
            )

    def filled(self, form: Mapping[str, Any]) -> dict[Any, Any]:
        """The updates that show another profile, in which nothing is changed yet."""
        return {self.keys: form, self.changed: {}, self.overrides: ""}

    def draw(self, form: Mapping[str, Any]) -> None:
        """A field for each key of the profile, with its bounds and what it means."""
        for entry in form.get("fields", ()):
            field = field_of(entry)
            field.change(
                self.changer(entry),
                [field, self.changed],
                [self.changed, self.overrides],
                queue=False,
                show_progress="hidden",
                api_visibility="private",
            )

    def changer(self, entry: Mapping[str, Any]) -> Callable[..., Any]:
        def change(value: Any, changed: dict[str, Any]) -> tuple[dict[str, Any], str]:
            """Remember a value that differs from the profile's; forget it if it is equal again."""
            rest = {name: each for name, each in changed.items() if name != entry["name"]}
            value = None if value == "" and entry["optional"] else value
            if value != entry["value"]:
                rest[entry["name"]] = value
            return rest, self.described(rest)

        return change

    def described(self, changed: Mapping[str, Any]) -> str:
        words = " ".join(overrides(changed))
        return drawing.sentence(f"{self.text('Changed:')} {words}") if words else ""


def field_of(entry: Mapping[str, Any]) -> Any:
    """The field that holds values of an entry's type."""
    shared: dict[str, Any] = {
        "label": entry["name"],
        "info": escape(entry["doc"]),
        "value": entry["value"],
        "interactive": True,
    }
    if entry["choices"]:
        empty = [("", None)] if entry["optional"] else []
        return gr.Dropdown(choices=[*empty, *((each, each) for each in entry["choices"])], **shared)
    if entry["type"] == "boolean" and not entry["optional"]:
        return gr.Checkbox(**shared)
    if entry["type"] in ("integer", "number"):
        # The desk holds values against their bounds; a field that moved them would change what was
        # typed.
        precision = 0 if entry["type"] == "integer" else None
        bounds = [str(entry[name]) for name in ("minimum", "maximum") if entry[name] is not None]
        if bounds:
            shared["info"] += f" ({' to '.join(bounds)})"
        return gr.Number(precision=precision, **shared)
    shared["value"] = "" if entry["value"] is None else str(entry["value"])
    return gr.Textbox(**shared)


def overrides(changed: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE texts as --set takes them."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in changed.items()]
