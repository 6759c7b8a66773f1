"""What every worker of prepare_data needs; imported once, before the workers are forked."""

import imagehash  # noqa: F401
import numpy  # noqa: F401
import orjson  # noqa: F401
import pyarrow.parquet
import rensa  # noqa: F401
import transformers.models.auto.tokenization_auto  # noqa: F401

import loraline.encoding
import loraline.parts  # noqa: F401

__all__ = ["pyarrow"]
