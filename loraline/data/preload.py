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

# These objects live as long as the process. A garbage collection would find nothing, and would copy
# the shared pages into each worker.
gc.disable()
for name in NEEDED:
    importlib.import_module(name)
gc.freeze()
gc.enable()
# Frozen objects would be reported as leaked by libraries that look for them at exit.
atexit.register(gc.unfreeze)
