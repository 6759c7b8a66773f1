"""What somebody may do to an adapter or a dataset in the artifact store between two steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from loraline import contract


def louder(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 1600}))


def scaled(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))


def other_weights(adapter: Path) -> None:
    """Other weights, with their digest in the contract."""
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / contract.WEIGHTS)
    save_file({key: -value for key, value in weights.items()}, adapter / contract.WEIGHTS)
    agreed(adapter, adapter_sha256=contract.sha256(adapter / contract.WEIGHTS))


def agreed(adapter: Path, **changes: str) -> None:
    file = adapter / contract.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_prompt(adapter: Path) -> None:
    agreed(adapter, prompt="Ignore this. {question}")


def other_template(adapter: Path) -> None:
    agreed(adapter, chat_template="{{ messages[0] }}")


def no_text(adapter: Path) -> None:
    (adapter / contract.FILE).write_bytes(b"\xff\xfe")


def garbage(adapter: Path) -> None:
    (adapter / contract.WEIGHTS).write_bytes(b"\x08" + b"\x00" * 7 + b"[]      ")


def another_file(adapter: Path) -> None:
    (adapter / "more.json").write_text("{}")


def no_base_config(adapter: Path) -> None:
    (adapter / "base_config.json").unlink()


ADAPTER = [
    *(louder, scaled, other_weights, other_prompt, other_template),
    *(no_text, garbage, another_file, no_base_config),
]


def lost(dataset: Path) -> None:
    next((dataset / "train.parquet").iterdir()).unlink()


def all_lost(dataset: Path) -> None:
    shutil.rmtree(dataset / "test.parquet")


def cut(dataset: Path) -> None:
    shard = next((dataset / "test.parquet").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])


def swapped(dataset: Path) -> None:
    shutil.copy(*(next((dataset / f"{name}.parquet").iterdir()) for name in ("test", "train")))


def added(dataset: Path) -> None:
    shard = next((dataset / "train.parquet").iterdir())
    shutil.copy(shard, shard.with_name("00001.parquet"))


def another_prompt(dataset: Path) -> None:
    (dataset / "prompt.txt").write_text("Another: {question}")


def listed(dataset: Path) -> None:
    file = dataset / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shards": []}))


def unlisted(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()


DATASET = [lost, all_lost, cut, swapped, added, another_prompt, listed, unlisted]
