"""Show every adapter of the zoo to a real vLLM and keep what it does with each.

    python tests/zoo/ask_vllm.py

Writes `tests/zoo/vllm-<version>.json`: for each adapter `refused` with vLLM's words, `applied` when
the next-token distribution is that of the model as trained, or what happens in silence instead:
`ignored` (it is the base's), `other` (it is neither), `not finite`. One process an engine, since a
failed one leaves its process unusable. Takes five minutes on two cores.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
SAME = 2e-3
"""Largest difference of a log-probability that float32 arithmetic may make."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "2",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    import vllm
    from adapters import cases

    verdicts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for base, tower in sorted({(case.base, case.tower) for case in cases()}):
            out = Path(folder, "verdicts.json")
            subprocess.run(
                [sys.executable, __file__, base, "tower" if tower else "", str(out)],
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
            verdicts |= json.loads(out.read_text())
    version = vllm.__version__.partition("+")[0]
    file = HERE / f"vllm-{version}.json"
    file.write_text(json.dumps(dict(sorted(verdicts.items())), indent=1) + "\n")
    print(f"{len(verdicts)} verdicts in {file}")


def ask(base: str, tower: bool) -> dict[str, Any]:
    """Verdicts on the zoo's adapters for one base and one kind of server."""
    import adapters
    from vllm import LLM

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "base")
        build(base, folder)
        options: dict[str, Any] = {"enable_tower_connector_lora": True} if tower else {}
        if base != "mistral":
            options["limit_mm_per_prompt"] = {"image": 1, "video": 0}
        engine = LLM(
            str(folder),
            dtype="float32",
            max_model_len=512,
            enforce_eager=True,
            kv_cache_memory_bytes=64 << 20,
            enable_prefix_caching=False,
            max_logprobs=-1,
            enable_lora=True,
            max_lora_rank=adapters.MAX_RANK,
            max_loras=2,
            max_num_seqs=2,
            **options,
        )
        prompts = questions(base, folder)
        bare = served(engine, prompts, None)
        assert far(bare, measured(adapters.loaded(folder), folder, prompts)) < SAME
        chosen = [case for case in adapters.cases() if (case.base, case.tower) == (base, tower)]
        # Values that are not finite stay in the cache and would spoil the adapters after them.
        chosen.sort(key=lambda case: case.name in ("text-nan", "text-infinity"))
        found = {}
        for number, case in enumerate(chosen, start=1):
            adapter = Path(place, case.name)
            tuned = adapters.make(case, folder, adapter)
            trained = None if case.trained_on else measured(tuned, folder, prompts)
            found[case.name] = judge(engine, prompts, bare, trained, adapter, number)
            print(case.name, found[case.name], flush=True)
        return found


def judge(
    engine: Any, prompts: list[Any], bare: Any, trained: Any, adapter: Path, number: int
) -> dict[str, str]:
    from vllm.lora.request import LoRARequest

    asked = LoRARequest(adapter.name, number, str(adapter))
    try:
        engine.llm_engine.add_lora(asked)
        got = served(engine, prompts, asked)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        words = f"{type(error).__name__}: {error}".replace(str(adapter), adapter.name)
        return {"verdict": "refused", "told": words.splitlines()[0][:300]}
    finally:
        engine.llm_engine.remove_lora(number)
    if not got.isfinite().all():
        return {"verdict": "not finite"}
    if far(got, bare) < SAME:
        return {"verdict": "ignored"}
    if trained is not None and far(got, trained) < SAME:
        return {"verdict": "applied"}
    return {"verdict": "other"}


def build(base: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "test_data" / "tiny_bases.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tiny.build(base, folder, [r"\frac{a}{b} + x^{2}", "What is the capital of France?"] * 4)


def questions(base: str, folder: Path) -> list[Any]:
    """Two prompts; for a vision base the first with an image."""
    from loraline.records import from_prompt

    texts = ["What is the capital of France?", r"\frac{a}{b} and x"]
    pictures = [None if base == "mistral" else drawing(), None]
    return [from_prompt("{question}", t, "", i) for t, i in zip(texts, pictures, strict=True)]


def drawing() -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (84, 56), "white")
    ImageDraw.Draw(image).line((2, 2, 70, 50), fill="black", width=5)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encoder(folder: Path) -> Any:
    from loraline.base.encoding import Encoder

    vision = (folder / "preprocessor_config.json").exists() or (
        folder / "processor_config.json"
    ).exists()
    if not vision:
        return Encoder(folder, "text")
    return Encoder(folder, "vision", min_pixels=28 * 28, max_pixels=28 * 28 * 64)


def measured(model: Any, folder: Path, prompts: list[Any]) -> Any:
    """Log-probabilities of the next token with transformers and PEFT: (prompts, words)."""
    import torch

    used = encoder(folder)
    found = []
    for record in prompts:
        row = used.encode(record)
        batch = used.collate([row], answers=False, side="left")
        with torch.inference_mode():
            found.append(model(**batch).logits[0, -1].log_softmax(-1))
    return torch.stack(found)


def served(engine: Any, prompts: list[Any], adapter: Any) -> Any:
    """The same from vLLM."""
    import torch
    from PIL import Image
    from vllm import SamplingParams

    used = encoder(Path(engine.llm_engine.model_config.model))
    asked = []
    for record in prompts:
        text = used._render(record.prompt(), add_generation_prompt=True)
        tokens = used.tokenizer(text, add_special_tokens=False).input_ids
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if record.images:
            image = Image.open(io.BytesIO(record.images[0])).convert("RGB")
            prompt["multi_modal_data"] = {"image": image}
        asked.append(prompt)
    wanted = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    found = []
    for prompt in asked:
        answer = engine.generate([prompt], wanted, lora_request=adapter, use_tqdm=False)[0]
        table = answer.outputs[0].logprobs[0]
        found.append(torch.tensor([table[token].logprob for token in sorted(table)]))
    return torch.stack(found)


def far(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        Path(sys.argv[3]).write_text(json.dumps(ask(sys.argv[1], sys.argv[2] == "tower")))
        # The engine's threads do not end by themselves after a refusal.
        os._exit(0)
