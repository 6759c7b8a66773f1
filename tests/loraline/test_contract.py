"""The contract travels with the adapter and holds for no other weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loraline import contract
from loraline.errors import UserError

WEIGHTS = b"weights"
FIELDS: dict[str, Any] = {
    "base": "mistralai/Mistral-7B-v0.1",
    "base_revision": "0" * 40,
    "modality": "text",
    "architecture": "MistralForCausalLM",
    "prompt": "{question}",
    "chat_template": "{{ messages }}",
    "min_pixels": None,
    "max_pixels": None,
    "max_length": 500,
    "max_new_tokens": 100,
    "dtype": "bfloat16",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "trains_vision": False,
    "adapter_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / contract.WEIGHTS).write_bytes(WEIGHTS)
    contract.write(contract.Contract(**FIELDS), tmp_path)
    return tmp_path


def rewrite(adapter: Path, **fields: Any) -> None:
    (adapter / contract.FILE).write_text(json.dumps(FIELDS | fields))


def test_what_is_written_is_read(adapter: Path) -> None:
    assert contract.read(adapter) == contract.Contract(**FIELDS)


def test_a_rounded_base_is_written_and_no_word_of_one_that_is_not(adapter: Path) -> None:
    agreed = contract.read(adapter)
    assert "quantization" not in (adapter / contract.FILE).read_text()
    contract.write(agreed.model_copy(update={"quantization": "fp8"}), adapter)
    assert contract.read(adapter).quantization == "fp8"
    assert not contract.read(adapter).is_served_as(agreed)


def test_a_contract_is_not_changed_once_it_is_made(adapter: Path) -> None:
    agreed = contract.read(adapter)

    with pytest.raises(ValidationError, match="frozen"):
        agreed.r = 16  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "reason"), [("{}", "base: Field required"), ("[]", "Input should be an object")]
)
def test_a_file_that_is_no_contract_is_said_in_one_line(
    tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / contract.FILE).write_text(content)
    with pytest.raises(UserError, match=f"is not a contract of this version: {reason}") as error:
        contract.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_field_that_is_not_known_is_refused(adapter: Path) -> None:
    rewrite(adapter, rank=8)

    with pytest.raises(UserError, match="is not a contract of this version: rank: Extra inputs"):
        contract.read(adapter)


@pytest.mark.parametrize("file", [contract.FILE, contract.WEIGHTS])
def test_a_missing_file_is_named(adapter: Path, file: str) -> None:
    (adapter / file).unlink()

    with pytest.raises(
        UserError, match=rf"is not an adapter of this pipeline: \S*{file} is missing"
    ):
        contract.read(adapter)


def test_other_weights_are_refused_with_both_digests(adapter: Path) -> None:
    (adapter / contract.WEIGHTS).write_bytes(b"others")

    with pytest.raises(UserError) as error:
        contract.read(adapter)

    assert hashlib.sha256(b"others").hexdigest() in str(error.value)
    assert FIELDS["adapter_sha256"] in str(error.value)


@pytest.mark.parametrize(
    ("revision", "is_folder"), [("0" * 40, False), (f"sha256:{'0' * 64}", True)]
)
def test_a_base_is_a_folder_where_a_digest_names_it(revision: str, is_folder: bool) -> None:
    assert contract.Contract(**FIELDS | {"base_revision": revision}).is_folder is is_folder


@pytest.mark.parametrize(
    ("longest", "answer", "positions", "room"),
    [
        (100, 50, None, 512),
        (600, 50, None, 768),
        (60, 32, 256, 256),
        (700, 50, 760, 760),
        (700, 50, 4096, 768),
        (700, 100, 760, 800),
    ],
    ids=["floor", "steps of 256", "short base", "just fits", "long base", "does not fit"],
)
def test_the_servers_length_keeps_to_the_bases_positions(
    longest: int, answer: int, positions: int | None, room: int
) -> None:
    agreed = contract.Contract.model_construct(
        max_length=longest, max_new_tokens=answer, max_positions=positions
    )
    assert agreed.max_model_len == room
