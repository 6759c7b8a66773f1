"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

Importing torchvision registers fake kernels for operators of its compiled library, which cannot be
loaded without CUDA; torch then refuses the registration and the import fails. Declaring the two
operators' schemas just before that import is enough for everything written in Python (resize,
normalise), which is all that the Qwen-VL processors use. The compiled operators stay absent.

Loaded through a .pth file because servers start worker processes of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareOperatorsFirst(MetaPathFinder):
    """Declares the operators at the first import of torchvision, then leaves the path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                # The library object owns the schemas: they vanish when it is collected.
                torch._torchvision_schemas = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    torch._torchvision_schemas.define(operator + SCHEMA)
        return None


sys.meta_path.insert(0, DeclareOperatorsFirst())
