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
