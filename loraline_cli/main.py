"""The command `loraline`; each subcommand is the click command of a script, loaded when it is used.

loraline prepare --profile smoke-text
loraline train --run-id "$(cat outputs/run-id)" --profile smoke-text
eval "$(loraline --completion bash)"
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click
from click.shell_completion import get_completion_class

INSTALLED = Path(__file__).parent
CHECKOUT = Path(__file__).parents[1]
HOME = INSTALLED if (INSTALLED / "steps").is_dir() else CHECKOUT
"""Where the scripts are: beside this file in a wheel, in the checkout otherwise."""

SCRIPTS = {
    "prepare": ("steps/prepare_data.py", "Prepare data: rows, checks, splits, in MLflow."),
    "train": ("steps/train_qlora.py", "Train a LoRA adapter on a frozen base."),
    "evaluate": ("steps/evaluate.py", "Measure the adapter beside its base and the champion."),
    "gate": ("steps/quality_gate.py", "Judge a candidate, and register it if it passes."),
    "deploy": ("steps/deploy_vllm.py", "Render the vLLM server of a version that passed."),
    "serve": ("steps/serve_local.py", "Serve a rendered manifest on this machine."),
    "verify": ("steps/verify_serving.py", "Ask a server what evaluation asked, and compare."),
    "promote": ("steps/promote.py", "Make a reviewed version the champion, or roll back."),
    "select": ("steps/select_best.py", "Choose the best of several evaluated candidates."),
    "benchmark": ("steps/benchmark_serving.py", "Measure a server's throughput and latency."),
}
"""Subcommands that are scripts: the file, whose stem names its click command, and what it does."""

MODULES = {
    "run": ("loraline_cli.run", "run", "Run a workflow on this machine, as Argo would."),
    "chat": ("loraline_cli.chat", "chat", "Talk with a served adapter in the terminal."),
    "profiles": ("loraline_cli.profiles", "profiles", "List training recipes, or show one."),
    "ui": ("gateway.ui.__main__", "ui", "Open the page in front of a gateway."),
    "desk": ("loraline_cli.desk.__main__", "desk", "Serve the page's Review and Train screens."),
    "doctor": ("loraline_cli.doctor", "doctor", "Say what is missing here, and what mends it."),
}
"""Subcommands that are modules: the module, its click command, and what it does."""


class Programs(click.Group):
    """Loads a subcommand's program when it is used, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SCRIPTS, *MODULES]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in SCRIPTS:
            script = HOME / SCRIPTS[name][0]
            command = getattr(load(script), script.stem)
        elif name in MODULES:
            module, attribute, _ = MODULES[name]
            command = getattr(importlib.import_module(module), attribute)
        else:
            return None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, texts[-1]) for name, texts in (SCRIPTS | MODULES).items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def load(script: Path) -> ModuleType:
    """A script as a module; scripts are no package, since each also runs by itself."""
    name = f"loraline_script_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def print_completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell is None:
        return
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(main, {}, "loraline", "_LORALINE_COMPLETE").source())
    ctx.exit()


@click.command(cls=Programs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="loraline-pipeline", prog_name="loraline")
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=print_completion,
    help='Print the shell\'s completion script: eval "$(loraline --completion bash)".',
)
def main() -> None:
    """One line from data to a served LoRA adapter."""
