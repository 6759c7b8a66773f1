from pathlib import Path

import pytest

FOLLOW = ("--model", "tiny-lora", "--alias", "candidate", "--adapters", "adapters", "--once")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{}", "base: Field required"), ("no JSON", "Invalid JSON"), (None, "No such file")],
)
def test_a_file_that_is_no_contract_is_said_in_one_sentence(
    step, workplace: Path, content: str | None, reason: str
) -> None:
    file = workplace / "contract.json"
    if content is not None:
        file.write_text(content)
    result = step("follow_alias", *FOLLOW, "--contract", file)
    assert result.exit_code == 2
    assert f"--contract {file} is not a contract: " in result.stderr
    assert reason in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_interval_that_is_no_wait_is_refused(step, workplace: Path) -> None:
    result = step("follow_alias", *FOLLOW, "--contract", "none", "--interval", "-5")
    assert (result.exit_code, "Invalid value for '--interval'" in result.stderr) == (2, True)
