"""Messages of other libraries that help nobody here and are not shown."""

from __future__ import annotations

import logging

SILENCED = {
    # bitsandbytes has code of its own for what the optional package would do faster on some CPUs;
    # the numbers are the same, and on a CPU only tiny bases are trained.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""How the message begins, by its logger. Everything else of the logger is shown."""


def silence() -> None:
    """Drop the messages of SILENCED, once however often it is called."""
    for name in SILENCED:
        logger = logging.getLogger(name)
        # A logger takes the same function only once.
        logger.addFilter(is_of_use)


def is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(SILENCED[record.name])
