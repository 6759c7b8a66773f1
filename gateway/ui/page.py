"""The page as a whole: its screens, in one language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from gateway.ui import ask, drawing, texts
from gateway.ui.ask import AskScreen
from gateway.ui.batch import BatchScreen
from gateway.ui.client import Refusal
from gateway.ui.compare import CompareScreen
from gateway.ui.connections import Connections
from gateway.ui.history import HistoryScreen
from gateway.ui.preferences import PreferencesScreen
from gateway.ui.review import REVIEWER, ReviewScreen
from gateway.ui.train import TRAINER, TrainScreen

FOLDER = Path(__file__).parent
FONTS = ["system-ui", "Segoe UI", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
SWEEP_S, KEEP_S = 600, 1800
"""Uploads are checked this often, and removed at this age."""


def build(connections: Connections, language: str) -> gr.Blocks:
    """The page; the gateway is asked when a visitor opens it."""
    _ = texts.of(language)
    with gr.Blocks(
        title="loraline",
        analytics_enabled=False,
        delete_cache=(SWEEP_S, KEEP_S),
    ) as page:
        gr.HTML("<h1>loraline</h1>")
        trouble = gr.HTML(elem_id="trouble")
        kept = gr.State({})
        with gr.Tabs():
            with gr.Tab(_("Ask"), id="ask"):
                ask_screen = AskScreen(connections, kept, _)
            with gr.Tab(_("Compare"), id="compare"):
                compared = CompareScreen(connections, _)
            with gr.Tab(_("Batch"), id="batch"):
                batch = BatchScreen(connections, _)
            with gr.Tab(_("History"), id="history") as opened:
                history = HistoryScreen(connections, _)
            if connections.settings.desk:
                with gr.Tab(_("Review"), id="review", visible=False) as reviewing:
                    review = ReviewScreen(connections, _)
                    review.wire()
                    review.wire_opening(reviewing)
                with gr.Tab(_("Train"), id="train", visible=False) as training:
                    train = TrainScreen(connections, _)
                    train.wire()
                    train.wire_opening(training)
            with gr.Tab(_("Settings"), id="settings"):
                preferences = PreferencesScreen(kept, language, _)
        for screen in (ask_screen, compared, batch, history, preferences):
            screen.wire()
        screens = (ask_screen, compared, batch)
        catalogues = [screen.chosen.catalogue for screen in screens]
        models = [screen.chosen.model for screen in screens]

        async def load(request: gr.Request) -> dict[Any, Any]:
            """What the gateway serves now, in every screen that asks it."""
            try:
                catalogue = await ask.catalogue(connections.gateway(request))
            except Refusal as error:
                return {trouble: drawing.sentence(error.sentence, wrong=True)}
            listed, first = ask.model_choices(catalogue), ask.first_choice(catalogue)
            four = [name for _, name in listed][:4]
            return {
                trouble: "",
                **dict.fromkeys(catalogues, catalogue),
                **{
                    model: gr.update(choices=listed, value=four if screen is compared else first)
                    for screen, model in zip(screens, models, strict=True)
                },
            }

        page.load(
            load, None, [trouble, *catalogues, *models],
            show_progress="hidden", api_visibility="private", concurrency_limit=None,
        )  # fmt: skip
        if connections.settings.desk:

            async def show_screens(request: gr.Request) -> list[Any]:
                """Each of the desk's screens, to those with its role alone."""
                roles = await review.roles(request)
                return [gr.update(visible=role in roles) for role in (REVIEWER, TRAINER)]

            page.load(
                show_screens, None, [reviewing, training],
                show_progress="hidden", api_visibility="private", concurrency_limit=None,
            )  # fmt: skip
        history.wire_opening(opened)
        preferences.wire_opening(page)
    page.queue(
        max_size=connections.settings.max_waiting,
        default_concurrency_limit=connections.settings.max_running,
    )
    return page


def theme() -> Any:
    """Gradio's plain theme with the machine's own fonts: none is fetched."""
    plain = gr.themes.Base(font=FONTS, font_mono=MONO)
    # Contrasts of 4.5 to 1 and more, which the plain theme lacks in places.
    return plain.set(
        body_text_color_subdued="#4b5563",
        body_text_color_subdued_dark="#c4c9d2",
        block_info_text_color="#4b5563",
        block_info_text_color_dark="#c4c9d2",
        input_placeholder_color="#4b5563",
        input_placeholder_color_dark="#c4c9d2",
        button_primary_background_fill="#1d4ed8",
        button_primary_background_fill_dark="#1d4ed8",
        button_primary_background_fill_hover="#1e40af",
        button_primary_background_fill_hover_dark="#1e40af",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_cancel_background_fill="#b42318",
        button_cancel_background_fill_dark="#b42318",
        button_cancel_text_color="#ffffff",
        button_cancel_text_color_dark="#ffffff",
    )


def head() -> str:
    return f"<script>{(FOLDER / 'page.js').read_text()}</script>"
