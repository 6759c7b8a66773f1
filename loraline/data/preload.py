"""What every worker of prepare_data needs; imported once, before the workers are forked."""

import atexit
import gc
import importlib

NEEDED = [
    "imagehash",
    "loraline.base.encoding",
    "loraline.data.parts",
    "numpy",
    "orjson",
    "pyarrow.parquet",
    "rensa",
    "transformers.models.auto.tokenization_auto",
]

# What is imported stays: the collector would walk through it in vain, and each worker that does so
# gets pages of its own in the place of shared ones.
gc.disable()
for name in NEEDED:
    importlib.import_module(name)
gc.freeze()
gc.enable()
# At the end libraries look for what they still hold, and would report it as leaked.
atexit.register(gc.unfreeze)
