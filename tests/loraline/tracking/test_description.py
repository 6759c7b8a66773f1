"""Descriptions keep to every store's limit, and the verdict is what is read first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

from loraline.tracking import description

VERDICT = f"{description.HEADING}\npassed: all rules kept\n\n| rule | value |\n\n"
CARD = "# smoke-v1\n\n- base: tiny\n"


def test_the_limit_is_that_of_mlflows_narrowest_column() -> None:
    assert SqlModelVersion.description.type.length == description.LIMIT


@given(st.text(max_size=7000), st.booleans())
def test_a_description_is_verdict_and_card_again(prompt: str, judged: bool) -> None:
    verdict = VERDICT if judged else ""
    text = description.of(verdict, CARD + prompt)
    assert len(text) <= description.LIMIT
    assert description.verdict(text) == verdict
    assert description.of(description.verdict(text), description.card(text)) == text
    assert text.startswith(verdict + CARD)


def test_a_verdict_replaces_that_of_an_earlier_version_of_the_line() -> None:
    earlier = f"{CARD}\n{description.HEADING}\nfailed: rows 3 is not at least 20\n"
    assert description.of(VERDICT, description.card(earlier)) == VERDICT + CARD
