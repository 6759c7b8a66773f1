"""Rows that a base cannot take are refused before it is trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_data import profile
from transformers import AutoTokenizer

from loraline import records
from loraline.base.locate import locate
from loraline.errors import UserError
from loraline.records import Record
from loraline.training.rows import load_rows


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [Record((("user", "Where?"), ("assistant", "In Paris")))] * 3
    for split in ("train", "validation"):
        records.write(tmp_path / f"{split}.parquet", rows)
    (tmp_path / "prompt.txt").write_text("{question}")
    return tmp_path


@pytest.fixture
def base(tiny_base: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base("mistral"), tmp_path / "base"))


def load(dataset: Path, base: Path, **changes: object) -> None:
    load_rows(dataset, profile("text", base=str(base), **changes), locate(str(base), None))


def test_a_word_of_the_tokenizer_that_the_base_was_not_given(dataset: Path, base: Path) -> None:
    load(dataset, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"unused-{n}" for n in range(4096)] + ["Paris"])
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match="none for 'Paris' of its tokenizer, which the rows use"):
        load(dataset, base)


def test_padding_that_the_base_was_not_given(dataset: Path, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"unused-{n}" for n in range(4096)])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match="none for '<pad>' of its tokenizer"):
        load(dataset, base)


def test_rows_longer_than_the_base(dataset: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    load(dataset, base, max_new_tokens=32)
    with pytest.raises(UserError, match="more than the base's 64 positions, which vLLM refuses"):
        load(dataset, base, max_new_tokens=60)
