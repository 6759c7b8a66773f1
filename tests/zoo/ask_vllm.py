"""Show every adapter of the zoo to a real vLLM and keep what it does with each.

    python tests/zoo/ask_vllm.py [--again] [BASE...]

Writes `tests/zoo/vllm-<version>.json`: for each adapter what vLLM does with it, and whether that is
what PEFT does, which measured it. The judge is a float32 forward pass of transformers and PEFT over
the tokens that vLLM chose: eight for text, one where the prompt has an image.

    refused     vLLM says no, in these words
    unloadable  vLLM serves it, PEFT does not load it
    not finite  vLLM serves NaN
    ignored     vLLM serves the base's answers
    applied     vLLM serves what PEFT loads from the files, which is what was trained
    lost        vLLM serves what PEFT loads, which is not what was trained
    other       vLLM serves something else

Only adapters without a verdict are asked about, of these bases where some are named; with --again
all. One process an engine, since a failed one leaves its process unusable. The whole takes fifteen
minutes on two cores.
"""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
SAME = 2e-3
"""Largest difference of a log-probability that float32 arithmetic may make."""

TOKENS = 8

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(wanted: list[str]) -> None:
    import vllm
    from adapters import cases

    again = "--again" in wanted
    wanted = [name for name in wanted if name != "--again"]
    version = vllm.__version__.partition("+")[0]
    file = HERE / f"vllm-{version}.json"
    verdicts = json.loads(file.read_text()) if file.exists() else {}
    open_cases = [
        case
        for case in cases()
        if (case.base in wanted or not wanted) and (again or case.name not in verdicts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for base, tower in sorted({(case.base, case.tower) for case in open_cases}):
            out = Path(folder, "verdicts.json")
            names = [case.name for case in open_cases if (case.base, case.tower) == (base, tower)]
            out.write_text(json.dumps(names))
            subprocess.run(
                [sys.executable, __file__, "--ask", base, "tower" if tower else "", str(out)],
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
            verdicts |= json.loads(out.read_text())
            kept = {case.name: verdicts[case.name] for case in cases() if case.name in verdicts}
            file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    print(f"{len(verdicts)} verdicts in {file}")


def ask(base: str, tower: bool, names: list[str]) -> dict[str, Any]:
    """Verdicts on adapters for one base and one kind of server."""
    import adapters
    import bases
    from vllm import LLM

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "base")
        bases.build(base, folder)
        options: dict[str, Any] = {"enable_tower_connector_lora": True} if tower else {}
        if base in bases.VISION:
            options["limit_mm_per_prompt"] = {"image": 1, "video": 0}
        chosen = [case for case in adapters.cases() if case.name in names]
        asked = asked_as(folder, questions(base in bases.VISION))
        try:
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
            judge = Judge(engine, folder, asked, base in bases.VISION)
            answers = judge.served(None)
        except Exception as error:
            message = f"the server answers nothing, without an adapter: {words(error, folder)}"
            return {case.name: {"verdict": "refused", "told": message} for case in chosen}
        assert far(answers.table, judge.measured(judge.base, answers)) < SAME
        result = {}
        for number, case in enumerate(chosen, start=1):
            adapter = Path(place, case.name)
            trained = adapters.make(case, folder, adapter)
            result[case.name] = judge(case, trained, adapter, number)
            print(case.name, result[case.name], flush=True)
        return result


class Answers(NamedTuple):
    """What vLLM said to each prompt."""

    tokens: list[list[int]]
    table: Any
    """Log-probabilities before each token: (prompts x tokens, words)."""


class Judge:
    """Holds vLLM's answers against those of transformers and PEFT."""

    def __init__(self, engine: Any, folder: Path, asked: list[Any], vision: bool) -> None:
        import adapters

        self.engine, self.asked = engine, asked
        self.folder = folder
        self.base = adapters.loaded(folder)
        self.prompts = questions(vision)
        self.tokens = 1 if vision else TOKENS

    def __call__(self, case: Any, trained: Any, adapter: Path, number: int) -> dict[str, str]:
        from vllm.lora.request import LoRARequest

        asked = LoRARequest(adapter.name, number, str(adapter))
        try:
            self.engine.llm_engine.add_lora(asked)
            answers = self.served(asked)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return {"verdict": "refused", "told": words(error, adapter)}
        finally:
            self.engine.llm_engine.remove_lora(number)
        if not answers.table.isfinite().all():
            # They stay in the cache and would spoil the answers after them.
            self.engine.collective_rpc(emptied)
        try:
            loaded = self.loaded(adapter)
        except Exception as error:
            return {"verdict": "unloadable", "told": words(error, adapter)}
        return {"verdict": self.verdict(case, trained, loaded, answers)}

    def loaded(self, adapter: Path) -> Any:
        """The model as PEFT makes it from the files."""
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.PeftModel.from_pretrained(copy.deepcopy(self.base), adapter).eval()

    def verdict(self, case: Any, trained: Any, loaded: Any, answers: Answers) -> str:
        if not answers.table.isfinite().all():
            return "not finite"
        if far(answers.table, self.measured(self.base, answers)) < SAME:
            return "ignored"
        if not far(answers.table, self.measured(loaded, answers)) < SAME:
            return "other"
        if case.retuned:
            return "applied"
        if case.trained_on:
            return "lost"
        return "applied" if far(answers.table, self.measured(trained, answers)) < SAME else "lost"

    def measured(self, model: Any, answers: Answers) -> Any:
        """Log-probabilities with transformers where vLLM chose its tokens."""
        import torch

        used = encoder(self.folder)
        result = []
        for record, tokens in zip(self.prompts, answers.tokens, strict=True):
            batch = used.collate([used.encode(record)], answers=False, side="left")
            length = batch["input_ids"].shape[1]
            more = torch.tensor([tokens[:-1]], dtype=torch.long)
            # Of the tokens' other properties only the mask is not zero for text.
            for key, value in batch.items():
                if value.shape == (1, length):
                    added = {"input_ids": more, "attention_mask": torch.ones_like(more)}
                    tail = added.get(key, torch.zeros_like(more)).to(value.dtype)
                    batch[key] = torch.cat([value, tail], 1)
            with torch.inference_mode():
                logits = model(**batch).logits[0, length - 1 :]
            result.append(logits.log_softmax(-1))
        return torch.cat(result)

    def served(self, adapter: Any) -> Answers:
        import torch
        from vllm import SamplingParams

        wanted = SamplingParams(temperature=0, max_tokens=self.tokens, ignore_eos=True, logprobs=-1)
        tokens, result = [], []
        for prompt in self.asked:
            answer = self.engine.generate([prompt], wanted, lora_request=adapter, use_tqdm=False)[0]
            tokens.append(list(answer.outputs[0].token_ids))
            for table in answer.outputs[0].logprobs:
                result.append(torch.tensor([table[token].logprob for token in sorted(table)]))
        return Answers(tokens, torch.stack(result))


def emptied(worker: Any) -> None:
    for cache in worker.model_runner.kv_caches:
        cache.zero_()


def words(error: BaseException, adapter: Path) -> str:
    message = f"{type(error).__name__}: {error}".replace(str(adapter), adapter.name)
    return message.splitlines()[0][:300]


def questions(vision: bool) -> list[Any]:
    """Two prompts; for a vision base the first with an image."""
    from loraline.records import from_prompt

    texts = ["What is the capital of France?", r"\frac{a}{b} and x"]
    pictures = [drawing() if vision else None, None]
    return [from_prompt("{question}", t, "", i) for t, i in zip(texts, pictures, strict=True)]


def asked_as(folder: Path, records: list[Any]) -> list[dict[str, Any]]:
    """The questions as vLLM is asked them: tokens that training has, too, and the picture."""
    from PIL import Image

    used = encoder(folder)
    asked = []
    for record in records:
        text = used.render_turns(record.prompt(), add_generation_prompt=True)
        prompt: dict[str, Any] = {
            "prompt_token_ids": used.tokenizer(text, add_special_tokens=False).input_ids
        }
        if record.images:
            image = Image.open(io.BytesIO(record.images[0])).convert("RGB")
            prompt["multi_modal_data"] = {"image": image}
        asked.append(prompt)
    return asked


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


def far(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        asked = Path(sys.argv[4])
        found = ask(sys.argv[2], sys.argv[3] == "tower", json.loads(asked.read_text()))
        asked.write_text(json.dumps(found))
        # The engine's threads do not end by themselves after a refusal.
        os._exit(0)
    main(sys.argv[1:])
