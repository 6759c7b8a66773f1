"""Measures a tiny base and two adapters with both engines; vLLM wants a process of its own.

python tests/loraline/answering/both_engines.py vision adapter tower FOLDER
python tests/loraline/answering/both_engines.py text adapter "language model" FOLDER gemma3
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from loraline import contract
from loraline.answering import hf, vllm_engine
from loraline.base import targets
from loraline.base.architectures import projections
from loraline.base.encoding import Encoder
from loraline.base.load import load
from loraline.base.locate import Base, locate
from loraline.records import from_prompt

DATA = Path(__file__).parents[3] / "test_data"
RANK = 8


def make_adapter(
    base: Base,
    modality: str,
    folder: Path,
    seed: int,
    rank: int = RANK,
    tower: bool = False,
) -> Path:
    """A random adapter that changes the base's answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = load(base, modality, quantization="none", dtype="float32")
    pattern = targets.target_modules(modality, projections(base.architecture), tower, tower)
    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=pattern, init_lora_weights=False, bias="none"
    )
    get_peft_model(model, settings).save_pretrained(folder)
    return folder


def agreed(
    base: Base, encoder: Encoder, modality: str, adapter: Path, tower: bool = False
) -> contract.Contract:
    vision = modality == "vision"
    return contract.Contract(
        base=str(base.path),
        base_revision=base.revision,
        modality=modality,
        architecture=base.architecture,
        prompt="{question}",
        chat_template=encoder.chat_template,
        min_pixels=4704 if vision else None,
        max_pixels=4704 if vision else None,
        max_length=128,
        max_new_tokens=24,
        dtype="float32",
        r=RANK,
        lora_alpha=RANK,
        target_modules=projections(base.architecture),
        trains_vision=tower,
        adapter_sha256=contract.sha256(adapter / contract.WEIGHTS),
    )


def rows_of(modality: str, encoder: Encoder, count: int) -> list:
    folder = DATA / modality
    prompt = (folder / "prompt.txt").read_text()
    name = "test.jsonl" if modality == "text" else "metadata.jsonl"
    result = [json.loads(line) for line in (folder / name).read_text().splitlines()[:count]]
    if modality == "text":
        records = [from_prompt(prompt, row["question"], row["answer"]) for row in result]
    else:
        records = [
            from_prompt(prompt, "", row["text"], (folder / row["file_name"]).read_bytes())
            for row in result
        ]
    return [encoder.encode(record) for record in records]


def base_of(modality: str, architecture: str, folder: Path) -> Path:
    """The trained base of test_data, or a random one of an architecture."""
    if not architecture:
        return DATA / modality / "base"
    sys.path.insert(0, str(DATA))
    import tiny_bases

    corpus = (DATA / "text" / "train.jsonl").read_text().splitlines()
    tiny_bases.build(architecture, folder / "base", corpus)
    return folder / "base"


def main(modality: str, export: str, part: str, place: str, architecture: str = "") -> None:
    folder, tower = Path(place), part == "tower"
    base = locate(str(base_of(modality, architecture, folder)), None)
    limits = {"min_pixels": 4704, "max_pixels": 4704} if modality == "vision" else {}
    encoder = Encoder(base.path, modality, **limits)
    one = make_adapter(base, modality, folder / "one", 1, tower=tower)
    two = make_adapter(base, modality, folder / "two", 2, rank=4 * RANK, tower=tower)
    settings = agreed(base, encoder, modality, one, tower)
    rows = rows_of(modality, encoder, 40)
    adapters = {"base": None, "tuned": one, "champion": two}
    other = agreed(base, encoder, modality, two, tower).model_copy(update={"export": export})
    contract.write(settings, one)
    contract.write(other, two)
    result = {}
    for engine in (hf, vllm_engine):
        measured = engine.measure(settings, base, adapters, encoder, rows)
        result[engine.__name__.rpartition(".")[2]] = {
            name: {"answers": [asdict(answer) for answer in answers], "nll": nll}
            for name, (answers, nll) in measured.items()
        }
    (folder / "found.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
