"""What is done to an adapter after PEFT has saved it: to its config, its weights, its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Edit = Callable[[Path], None]
Tensors = dict[str, Any]


def config(remove: tuple[str, ...] = (), **settings: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / CONFIG
        content = json.loads(file.read_text()) | settings
        file.write_text(json.dumps({k: v for k, v in content.items() if k not in remove}))

    return edit


def weights(change: Callable[[Tensors], Tensors]) -> Edit:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / WEIGHTS
        changed = change(load_file(file))
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, file)

    return edit


def renamed(old: str, new: str) -> Edit:
    return weights(lambda result: {key.replace(old, new): value for key, value in result.items()})


def without(part: str) -> Edit:
    return weights(lambda result: {key: v for key, v in result.items() if part not in key})


def each(change: Callable[[str, Any], Any]) -> Edit:
    return weights(lambda result: {key: change(key, value) for key, value in result.items()})


def first(change: Callable[[Any], Any]) -> Edit:
    """Change the first lora_B alone."""

    def edit(result: Tensors) -> Tensors:
        key = min(key for key in result if "lora_B" in key)
        return result | {key: change(result[key])}

    return weights(edit)


def plus(key: str, *shape: int) -> Edit:
    import torch

    return weights(lambda result: result | {key: torch.ones(*shape)})


def cast(dtype: str) -> Edit:
    import torch

    return each(lambda key, value: value.to(getattr(torch, dtype)))


def filled(value: float) -> Edit:
    return first(lambda tensor: tensor.index_fill(0, tensor.new_zeros(1).long(), value))


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-64])


def removed(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def as_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def resized(key: str, value: Any) -> Any:
    """An adapter's matrix with rank 8 where it had 4."""
    import torch

    return torch.cat([value, value], 0 if "lora_A" in key else 1)


def to_rank_32(key: str, value: Any) -> Any:
    return resized(key, resized(key, resized(key, value)))


def fewer(number: int) -> Edit:
    """Keep the first tensors alone."""
    return weights(lambda result: {key: result[key] for key in sorted(result)[:number]})


def written(name: str, content: str | bytes) -> Edit:
    """A file of the folder, with this content."""

    def edit(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return edit


def config_text(change: Callable[[str], str | bytes]) -> Edit:
    """Change the text of the config, for what json.dumps does not write."""

    def edit(folder: Path) -> None:
        written(CONFIG, change((folder / CONFIG).read_text()))(folder)

    return edit


def raw(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Edit:
    """Change a safetensors file's header, as JSON text, and its data."""

    def edit(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header, data = change(content[8:end], content[end:])
        (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)

    return edit


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Change a safetensors file's header."""
    return raw(lambda text, data: (json.dumps(change(json.loads(text))).encode(), data))


def entry(change: Callable[[Any], Any]) -> Edit:
    """Change the header's entry of one tensor."""

    def edit(result: dict[str, Any]) -> dict[str, Any]:
        key = min(key for key in result if key != "__metadata__")
        return result | {key: change(result[key])}

    return header(edit)


def folder_instead(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit
