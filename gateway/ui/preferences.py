"""Settings: how free questions are asked, and how the page looks; kept in the visitor's browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gradio as gr

from gateway.ui import drawing, texts
from gateway.ui.connections import Preferences

THEME_JS = """(chosen) => {
  localStorage.setItem("loraline-theme", chosen);
  const dark = chosen === "dark"
    || (chosen === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.body.classList.toggle("dark", dark);
}"""
KEEP_JS = """(kept) => { localStorage.setItem("loraline-preferences", JSON.stringify(kept)); }"""
KEPT_JS = """() => [localStorage.getItem("loraline-preferences") || ""]"""
THEME_OF_BROWSER_JS = """() => localStorage.getItem("loraline-theme") || "system" """
LANGUAGE_JS = """(path) => { window.location.assign(path); }"""


class PreferencesScreen:
    def __init__(self, kept: Any, language: str, _: Callable[[str], str]) -> None:
        self.kept = kept
        self.text = _
        default = Preferences()
        gr.HTML(
            "<p>"
            + _(
                "A task and an adapter's own prompt are asked as they were measured; these are the "
                "settings of free questions."
            )
            + "</p>"
        )
        self.system = gr.Textbox(
            label=_("System prompt"), lines=2, max_length=10_000, elem_id="settings-system"
        )
        with gr.Row():
            self.temperature = gr.Slider(
                0, 2, default.temperature, step=0.05, label=_("Temperature"), min_width=160
            )
            self.top_p = gr.Slider(
                0.05, 1, default.top_p, step=0.05, label=_("Top p"), min_width=160
            )
        with gr.Row():
            self.max_tokens = gr.Number(
                default.max_tokens, precision=0, minimum=1, maximum=8192,
                label=_("Most tokens of an answer"), min_width=160,
            )  # fmt: skip
            self.seed = gr.Number(
                None, precision=0, label=_("Seed, for answers that repeat"), min_width=160
            )
            self.megapixels = gr.Number(
                default.megapixels, minimum=0, maximum=64,
                label=_("Largest picture to send, in megapixels; 0 sends the file itself"),
                min_width=160,
            )  # fmt: skip
        with gr.Row():
            self.save = gr.Button(_("Keep these settings"), variant="primary")
            self.reset = gr.Button(_("Back to the defaults"))
        self.line = gr.HTML(elem_id="settings-line")
        self.browser = gr.Textbox(visible=False)
        """What the browser kept, as JSON; it is asked when the page opens."""

        self.saved = gr.JSON(visible=False)
        """What the browser shall keep."""

        with gr.Row():
            self.theme = gr.Radio(
                [(_("As the machine"), "system"), (_("Light"), "light"), (_("Dark"), "dark")],
                value="system", label=_("Theme"),
            )  # fmt: skip
            self.language = gr.Radio(
                [(texts.NAMES[name], path) for name, path in texts.PATHS.items()],
                value=texts.PATHS[language], label=_("Language"),
            )  # fmt: skip
        gr.HTML(
            '<form method="post" action="/logout"><button class="ll-plain">'
            + _("Sign out")
            + "</button></form>"
        )

    @property
    def fields(self) -> list[Any]:
        return [
            self.system, self.temperature, self.top_p, self.max_tokens, self.seed, self.megapixels
        ]  # fmt: skip

    def wire(self) -> None:
        self.save.click(
            self.on_save, self.fields, [self.kept, self.saved, self.line],
            queue=False, show_progress="hidden", api_visibility="private",
        ).then(None, [self.saved], None, js=KEEP_JS)  # fmt: skip
        self.reset.click(
            self.on_reset, None, [*self.fields, self.kept, self.saved, self.line],
            queue=False, show_progress="hidden", api_visibility="private",
        ).then(None, [self.saved], None, js=KEEP_JS)  # fmt: skip
        self.theme.input(None, [self.theme], None, js=THEME_JS)
        self.language.input(None, [self.language], None, js=LANGUAGE_JS)

    def wire_opening(self, page: Any) -> None:
        page.load(
            self.on_load, [self.browser], [*self.fields, self.kept], js=KEPT_JS,
            show_progress="hidden", api_visibility="private", concurrency_limit=None,
        )  # fmt: skip
        page.load(None, None, [self.theme], js=THEME_OF_BROWSER_JS)

    def on_load(self, browser: str) -> list[Any]:
        try:
            kept = json.loads(browser or "{}")
        except ValueError:
            kept = {}
        fields = values(Preferences.of(kept))
        return [*fields.values(), fields]

    def on_save(self, *inputs: Any) -> list[Any]:
        chosen = values(Preferences.of(dict(zip(values(Preferences()), inputs, strict=True))))
        return [chosen, chosen, drawing.sentence(self.text("Kept in this browser."))]

    def on_reset(self) -> list[Any]:
        default = values(Preferences())
        done = drawing.sentence(self.text("Kept in this browser."))
        return [*default.values(), default, default, done]


def values(preferences: Preferences) -> dict[str, Any]:
    """The preferences in the order of the screen's fields."""
    fields = asdict(preferences)
    names = ("system", "temperature", "top_p", "max_tokens", "seed", "megapixels")
    return {name: fields[name] for name in names}
