"""One message of a library is dropped, and nothing else of it."""

import logging

import pytest

from loraline.process import quiet


@pytest.mark.parametrize("name", quiet.SILENCED)
def test_the_message_alone_is_dropped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    quiet.silence()
    logger = logging.getLogger(name)
    logger.warning("%s from kernels-community: no such module", quiet.SILENCED[name])
    logger.warning("another warning")
    assert caplog.messages == ["another warning"]


def test_bitsandbytes_says_it_under_the_name_that_is_silenced() -> None:
    from importlib.util import find_spec
    from pathlib import Path

    for name, begins in quiet.SILENCED.items():
        spec = find_spec(name.partition(".")[0])
        assert spec is not None and spec.origin is not None
        module = Path(spec.origin).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
        source = module.read_text()
        assert begins in source
        assert "logger = logging.getLogger(__name__)" in source
