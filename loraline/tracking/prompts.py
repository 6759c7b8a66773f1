"""Prompts in MLflow's registry: with a name and a version, the same for every step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraline.errors import UserError
from loraline.records import TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import PromptVersion

SCHEME = "prompts:/"
PLACEHOLDER, MLFLOW_PLACEHOLDER = "{question}", re.compile(r"\{\{\s*question\s*\}\}")
"""The place of the row's question in a template: here, and in MLflow, which doubles the braces."""


@dataclass(frozen=True)
class Prompt:
    """A template, with its name and version in the registry."""

    template: str | None
    """None if no prompt was given, so that the question is the whole user turn."""

    name: str = ""
    version: int = 0

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.name}/{self.version}" if self.name else ""


def resolve(source: str | None, beside: Path | None, client: MlflowClient | None) -> Prompt:
    """The prompt that `--prompt` names, or else the file beside the data.

    `source` is `prompts:/name/version`, `prompts:/name@alias` or a file. Raises UserError for one
    that does not exist or holds a media tag.
    """
    if source and source.startswith(SCHEME):
        if client is None:
            from loraline.tracking import store

            client = store.connect()
        prompt = load(client, source)
    elif source or beside:
        file = Path(source) if source else beside
        assert file is not None
        try:
            template = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(f"--prompt {str(file)!r} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"prompt {file} is not UTF-8") from error
        prompt = Prompt(MLFLOW_PLACEHOLDER.sub(lambda match: PLACEHOLDER, template))
    else:
        return Prompt(None)
    if tag := TAGS.search(prompt.template or ""):
        raise UserError(
            f"the prompt must not contain {tag.group()}: each row's media go before the prompt"
        )
    return prompt


def load(client: MlflowClient, uri: str) -> Prompt:
    """A prompt of MLflow's registry; UserError if there is none or it is a chat prompt."""
    from mlflow.exceptions import MlflowException

    from loraline.tracking import store

    try:
        registered = client.load_prompt(uri)
    except MlflowException as error:
        if store.is_outage(error):
            raise
        raise UserError(f"--prompt {uri} is not in MLflow at {store.uri()}: {error}") from error
    if not isinstance(registered.template, str):
        raise UserError(f"--prompt {uri} is a chat prompt; expected a text prompt")
    return Prompt(
        MLFLOW_PLACEHOLDER.sub(lambda match: PLACEHOLDER, registered.template),
        registered.name,
        int(registered.version),
    )


def register(client: MlflowClient, prompt: Prompt, name: str) -> Prompt:
    """Put a prompt from a file into the registry, once: an equal version is taken as it is."""
    from mlflow.exceptions import MlflowException

    if prompt.template is None or prompt.name:
        return prompt
    template = prompt.template.replace(PLACEHOLDER, "{{question}}")
    try:
        versions = versions_of(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        versions = []
    for registered in sorted(versions, key=lambda version: int(version.version)):
        if registered.template == template:
            return Prompt(prompt.template, name, int(registered.version))
    created = client.register_prompt(name, template, commit_message="registered by prepare_data")
    return Prompt(prompt.template, name, int(created.version))


def versions_of(client: MlflowClient, name: str) -> list[PromptVersion]:
    """All versions of a prompt; MLflow gives a hundred at a time."""
    page = client.search_prompt_versions(name)
    versions = list(page)
    while page.token:
        page = client.search_prompt_versions(name, page_token=page.token)
        versions += page
    return versions


def link(client: MlflowClient, data_run: Run, run: Run) -> None:
    """Link the prompt version of a prepare_data run to another run, where there is one.

    MLflow's page of the run names the prompt then. One that was deleted since is not linked: what
    it said is in the dataset.
    """
    from mlflow.exceptions import MlflowException

    uri = data_run.data.params.get("prompt_uri")
    if not uri:
        return
    try:
        client.link_prompt_version_to_run(run.info.run_id, uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
