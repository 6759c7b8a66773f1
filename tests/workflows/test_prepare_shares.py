"""The fan-out over shares renders to what is committed, and its commands parse."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RENDERED = ROOT / "workflows/prepare_shares.yaml"
SPEC = yaml.safe_load(RENDERED.read_text())["spec"]
TEMPLATES = {template["name"]: template for template in SPEC["templates"]}


def test_the_committed_yaml_is_what_the_source_renders(script) -> None:
    source = script("workflows/prepare_shares.py")
    assert RENDERED.read_text() == source.render(source.build())


def test_shares_run_side_by_side_and_one_merge_takes_their_runs() -> None:
    share, merge = TEMPLATES["main"]["dag"]["tasks"]
    assert share["withParam"] == "{{workflow.parameters.parts}}"
    message = {entry["name"]: entry["value"] for entry in share["arguments"]["parameters"]}
    assert message["part"] == "{{item}}"
    assert merge["depends"] == "share"
    message = {entry["name"]: entry["value"] for entry in merge["arguments"]["parameters"]}
    assert message["merge"] == "{{tasks.share.outputs.parameters.run-id}}"


def test_both_templates_are_commands_of_the_step(script) -> None:
    command = script("steps/prepare_data.py").prepare_data
    for name in ("share", "merge"):
        container = TEMPLATES[name]["container"]
        assert container["command"] == ["python", "steps/prepare_data.py"]
        # The others take any text; this one is read, and is empty unless recipes are sent.
        sent = "{{inputs.parameters.recipes}}"
        words = ["" if word == sent else word for word in container["args"]]
        assert sent in container["args"]
        command.make_context("prepare_data", words)
