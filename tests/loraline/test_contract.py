from pathlib import Path

import pytest

from loraline import contract
from loraline.errors import UserError


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
