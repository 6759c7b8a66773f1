"""The unsloth arms of bench/train.py, run by the Python of unsloth's own environment.

    PYTHON bench/train_unsloth.py unsloth path/to/base 18 '{"r": 8, ...}'

unsloth needs other versions of transformers, TRL and datasets than ours, and a GPU to be imported.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKPOINTING: dict[str, Any] = {"unsloth": False, "unsloth-small": "unsloth"}
"""The arms, and what unsloth calls their gradient checkpointing."""


def main(arm: str, base: Path, steps: int, settings: dict[str, Any]) -> None:
    """Train a text base; what was measured as the last line of standard output.

    unsloth's best: all rows of a step in one pass without padding, its own kernels, and its own
    checkpointing or none. `settings` are the profile's.
    """
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # isort: skip

    import torch
    from train_arms import Clock, count_tokens, figures, trl_rows
    from trl import SFTConfig, SFTTrainer

    rows = settings["rows_per_step"]
    _, data = trl_rows("text", base, rows * steps)
    model, words = FastLanguageModel.from_pretrained(
        model_name=str(base),
        max_seq_length=settings["max_length"],
        dtype=torch.bfloat16,
        load_in_4bit=True,
        use_gradient_checkpointing=CHECKPOINTING[arm],
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        use_gradient_checkpointing=CHECKPOINTING[arm],
        random_state=0,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=1,
                padding_free=True,
                optim="adamw_8bit",
                learning_rate=settings["learning_rate"],
                warmup_steps=settings["warmup_steps"],
                bf16=True,
                max_length=settings["max_length"],
                dataset_num_proc=1,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=words,
            callbacks=[clock],
        )
        count_tokens(trainer, clock)
        trainer.train()
    measured = figures("text", arm, base, trainer, clock)
    measured |= {"padding_free": trainer.args.padding_free, "versions": versions()}
    print(json.dumps(measured))


def versions() -> dict[str, str]:
    """Versions of what this arm ran with."""
    from importlib.metadata import version

    names = ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "datasets")
    return {name: version(name) for name in (*names, "bitsandbytes", "triton")}


if __name__ == "__main__":
    arm, base, steps, settings = sys.argv[1:]
    main(arm, Path(base), int(steps), json.loads(settings))
