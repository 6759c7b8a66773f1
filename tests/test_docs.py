"""The documentation names what is there, and all of it."""

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml

from loraline.base import architectures
from loraline.evaluation import plugins
from loraline.profiles import catalog, layered_yaml, limits
from loraline.profiles.keys import Tune
from loraline.profiles.loading import load_profile
from loraline.profiles.preparation import Prepare, Split
from loraline.profiles.profile import Profile
from loraline_cli import main as cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every code block and table that calls a script of ours."""
    result = []
    for page in PAGES:
        text = page.read_text()
        for line in re.findall(
            r"(?:\.venv/bin/)?python (?:bench|docs|steps|workflows|test_data)/[^`|\n]+", text
        ):
            result.append((page.name, line.partition("   #")[0].strip()))
    return result


def subcommands() -> list[str]:
    """Every line of a code block that calls the command `loraline`."""
    pages = "\n".join(page.read_text() for page in PAGES)
    return re.findall(r"^loraline [a-z][^#\n]*", pages, re.MULTILINE)


@pytest.mark.parametrize("command", subcommands())
def test_the_docs_call_the_command_as_it_is(command: str) -> None:
    _, name, *words = shlex.split(command)
    program = cli.main.get_command(click.Context(cli.main), name)
    assert program is not None
    program.make_context(name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_files_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= TARGETS
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def make_lines() -> list[str]:
    """Every line of a code block that calls make."""
    pages = "\n".join(page.read_text() for page in PAGES)
    lines = re.findall(r"^make [a-z][^#\n]*", pages, re.MULTILINE)
    return sorted({line.strip() for line in lines})


@pytest.mark.parametrize("line", make_lines())
def test_make_takes_each_line_of_the_docs(line: str) -> None:
    _, *words = shlex.split(line)
    # Make would take a variable that nothing reads.
    known = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word.partition("=")[0] for word in words if "=" in word} <= known
    dry = ["make", "-C", str(ROOT), "-n", "-o", ".venv/.installed", *words]
    printed = subprocess.run(dry, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr


def yaml_blocks() -> list[tuple[str, str]]:
    """(page, text) of every block of YAML."""
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(
    "text", [text for _, text in yaml_blocks() if text.lstrip("# ").startswith("apiVersion")]
)
def test_objects_in_the_docs_are_what_kubernetes_takes(text: str) -> None:
    kubernetes_validate.validate(yaml.safe_load(text), "1.34", strict=True)


@pytest.mark.parametrize("text", [t for _, t in yaml_blocks() if "extends:" in t])
def test_recipes_in_the_docs_are_ones(text: str) -> None:
    files = dict(catalog.files(ROOT / "lora_profiles"))
    recipe = yaml.safe_load(text)
    parent = catalog.resolve(recipe.pop("extends"), files)
    Profile.model_validate(layered_yaml.merge(parent, recipe))


def test_classes_in_the_docs_are_ones(script, tmp_path: Path) -> None:
    (text,) = [text for _, text in yaml_blocks() if text.startswith("# classes.yaml")]
    (tmp_path / "classes.yaml").write_text(text)
    classes = script("workflows/resources.py").load(tmp_path / "classes.yaml")
    assert classes["h200"].gpu_memory_above == 130000


def test_the_metric_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own_metric.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "word_recall.py").write_text(source)
    (metric,) = plugins.load([str(tmp_path / "word_recall.py")])
    assert metric.measure(["Aisle one", ""], ["in aisle one", "x"]).value == pytest.approx(1 / 3)


def test_the_site_lists_each_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed, waiting = set(), list(site["nav"])
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            listed.add(entry)
        else:
            waiting += [page for pages in entry.values() for page in pages]
    docs = ROOT / "docs"
    assert listed == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


def test_the_page_of_models_lists_what_the_doctor_lists() -> None:
    page = (ROOT / "docs" / "own_model.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", page, re.MULTILINE))
    assert architectures.MODELS.keys() == architectures.TEXT | architectures.VISION
    assert listed == architectures.MODELS | architectures.NOT_TRAINED


def messages() -> list[str]:
    """What the program says, of the first column of Troubleshooting's tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    return [text for cell in cells for text in re.findall("`([^`]* [^`]*)`", cell)]


@functools.cache
def texts_of_the_code() -> str:
    """Every text that the code holds, adjacent ones joined, a line each."""
    texts = [(ROOT / "Makefile").read_text()]
    for folder in ("loraline", "loraline_cli", "runner", "steps", "workflows"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text()))
            constants = (node.value for node in nodes if isinstance(node, ast.Constant))
            texts += [value for value in constants if isinstance(value, str)]
    return "\n".join(texts)


@pytest.mark.parametrize("message", messages())
def test_troubleshooting_lists_what_is_said(message: str) -> None:
    for part in filter(None, map(str.strip, message.split("…"))):
        assert part in texts_of_the_code(), part


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_in_the_docs_parse(page: str, command: str, script, workplace: Path) -> None:
    words = shlex.split(command)
    path = words[1]
    module = script(path)
    arguments = words[2:]
    for word in arguments:
        if word.endswith(("vllm.yaml", ".log", "outputs/latest", "report.html", "classes.yaml")):
            target = workplace / word
            (target if word.endswith("latest") else target.parent).mkdir(
                parents=True, exist_ok=True
            )
            if not target.exists():
                target.write_text("")
    for folder in ("workflows", "docs"):
        (workplace / folder).symlink_to(ROOT / folder)
    getattr(module, Path(path).stem).make_context(path, arguments)


@pytest.mark.parametrize(
    ("page", "command"), [each for each in commands() if "outputs/latest" in each[1]]
)
def test_commands_that_take_a_task_of_the_last_run_take_the_right_one(
    page: str, command: str, script
) -> None:
    taken = re.findall(r'--run-id "\$\(cat outputs/latest-pipeline/([a-z-]+)/run-id\)"', command)
    path = shlex.split(command)[1]
    options = getattr(script(path), Path(path).stem).params
    wanted = next((option.help for option in options if option.name == "run_id"), None)
    assert [f"MLflow run of {task.replace('-', '_')}." for task in taken] == [wanted] * len(taken)


@pytest.mark.parametrize("path", PAGES, ids=lambda page: page.name)
def test_run_ids_are_taken_from_where_the_reader_has_them(path: Path) -> None:
    page = path.read_text()
    # Only steps by hand write this file, and only they may read it.
    before, read, _ = page.partition("cat outputs/run-id")
    prepared = "python steps/prepare_data.py" in before or "loraline prepare" in before
    assert not read or prepared
    # A run of any other workflow would move this one.
    assert "cat outputs/latest/" not in page
    tasks = (ROOT / "workflows" / "pipeline.yaml").read_text()
    for task in re.findall(r"outputs/latest[a-z-]*/([a-z-]+)/run-id", page):
        assert f"name: {task}\n" in tasks


def test_the_docs_use_each_script_of_the_house() -> None:
    named = {shlex.split(command)[1] for _, command in commands()}
    steps = {f"steps/{path.name}" for path in (ROOT / "steps").glob("*.py")}
    assert steps - {"steps/fetch_adapter.py", "steps/follow_alias.py"} <= named


def test_each_option_of_a_step_is_documented(script) -> None:
    text = "".join(page.read_text() for page in PAGES)
    for path in (ROOT / "steps").glob("*.py"):
        if path.stem in ("fetch_adapter", "follow_alias"):
            continue
        command = getattr(script(f"steps/{path.name}"), path.stem)
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                continue
            assert f"`{parameter.opts[0]}" in text or f" {parameter.opts[0]}" in text, (
                parameter.opts
            )
            assert getattr(parameter, "help", ""), parameter.opts


def test_profiles_page_lists_every_profile_and_key() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    listed = set(re.findall(r"`([\w.-]+)`", page))
    assert set(catalog.names(ROOT / "lora_profiles")) <= listed
    keys = set(Profile.model_fields) - {"gate"}
    keys -= {"split", "tune", "prepare"}
    keys |= {f"prepare.{key}" for key in Prepare.model_fields}
    keys |= {f"gate.{key}" for key in limits.Gate.model_fields}
    keys |= {f"split.{key}" for key in Split.model_fields}
    keys |= {f"tune.{key}" for key in Tune.model_fields}
    assert keys <= listed


def test_profiles_page_tells_the_ladders_numbers() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    for name in catalog.names(ROOT / "lora_profiles"):
        if not name.startswith("smoke"):
            profile = load_profile(name, ROOT / "lora_profiles")
            dropout = f"{profile.lora_dropout:g}"
            assert f"| {profile.r}, {profile.lora_alpha}, {dropout} |" in page, name


def test_environment_variables_are_documented() -> None:
    from loraline.tracking.settings import Settings

    page = (ROOT / "docs" / "architecture.md").read_text()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variable = alias.choices[0] if alias else f"LORALINE_{name.upper()}"
        assert f"`{variable}`" in page, variable


def test_gateway_page_lists_every_setting_with_its_default() -> None:
    from gateway.settings import Settings

    page = (ROOT / "docs" / "gateway.md").read_text()
    message = dict(re.findall(r"^\| `(GATEWAY_\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    fields = {
        str(field.validation_alias or f"GATEWAY_{name.upper()}"): field.default
        for name, field in Settings.model_fields.items()
    }
    assert message.keys() == fields.keys()
    for name, default in fields.items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert float(message[name]) == default, name


def test_gateway_page_lists_every_address() -> None:
    from gateway.app import create_app
    from gateway.settings import Settings

    page = (ROOT / "docs" / "gateway.md").read_text()
    shown = page.replace("…", "/sessions/{session}")
    for path in create_app(Settings()).openapi()["paths"]:
        assert path in shown, path
