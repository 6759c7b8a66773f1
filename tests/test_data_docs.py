"""The data page tells every format, check and limit, with tests that are there."""

import re
from pathlib import Path

from loraline.data.checks import CHECKS
from loraline.data.reading.layouts import FORMATS
from loraline.data.reading.media import Limits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the table whose head begins so, by their first cell."""
    lines = iter(PAGE.splitlines())
    rows = {}
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            for line in lines:
                if not line.startswith("|"):
                    break
                first, *others = (cell.strip() for cell in line.strip("|").split("|"))
                rows[first.strip("`")] = others
    return rows


def test_every_check_is_listed_with_its_meaning_and_actions() -> None:
    listed = table("check")
    assert list(listed) == list(CHECKS)
    for name, check in CHECKS.items():
        others = [action for action in check.accepted if action != check.default]
        assert listed[name][:2] == [check.meaning, ", ".join([check.default, *others])]


def test_every_format_and_limit_is_listed() -> None:
    assert set(FORMATS) <= set(table("format"))
    limits = table("limit")
    assert list(limits) == list(Limits.__dataclass_fields__)
    for name, field in Limits.__dataclass_fields__.items():
        assert limits[name][1] == f"{field.default:,}"


def test_every_test_that_is_named_is_there() -> None:
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)[`\[]", PAGE)) - {"test_boxes", "test_duplicates"}
    assert len(named) > 15
    for name in named:
        assert f"def {name}(" in written, name
    for name in table("format") | table("check"):
        assert "test_" in (table("format") | table("check"))[name][-1], name
