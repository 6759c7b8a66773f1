"""The trainer: TRL's SFTTrainer on a 4-bit base, fed with our own rows and labels."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline import models, progress
from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.encoding import Encoder, Row
    from loraline.profiles import Profile

TRACKED = {"loss", "eval_loss", "learning_rate", "grad_norm", "mean_token_accuracy"}
"""What the trainer reports and a reviewer looks at."""


def build(
    recipe: Profile, base: models.Base, encoder: Encoder, rows: dict[str, list[Row]], scratch: Path
) -> Any:
    """The trainer of a profile on its base; `rows` has the splits train and validation."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    # Without a GPU, float32 is the fast type: few CPUs multiply bfloat16.
    dtype = "bfloat16" if on_gpu else "float32"
    model = models.load(base, recipe.modality, quantize=True, dtype=dtype)
    merger = recipe.merger_learning_rate is not None
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch / "trainer"),
            num_train_epochs=recipe.num_train_epochs,
            max_steps=recipe.max_steps or -1,
            per_device_train_batch_size=recipe.per_device_train_batch_size,
            per_device_eval_batch_size=recipe.per_device_train_batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            gradient_checkpointing=recipe.gradient_checkpointing,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.lr_scheduler_type,
            warmup_steps=recipe.warmup_steps,
            optim="paged_adamw_8bit" if on_gpu else "adamw_torch",
            bf16=on_gpu,
            seed=recipe.seed,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            logging_steps=5,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        # The rows themselves stay where they are; the trainer shuffles and batches their indices.
        train_dataset=Dataset.from_dict({"index": range(len(rows["train"]))}),
        eval_dataset=Dataset.from_dict(
            {"index": [len(rows["train"]) + i for i in range(len(rows["validation"]))]}
        ),
        data_collator=collator(encoder, [*rows["train"], *rows["validation"]]),
        processing_class=encoder.processor or encoder.tokenizer,
        peft_config=LoraConfig(
            r=recipe.r,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=models.target_modules(recipe.modality, recipe.target_modules, merger),
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts adapters of a quantized base to bfloat16, whose 8 bits lose small updates.
            parameter.data = parameter.data.float()
    if recipe.merger_learning_rate is not None:
        trainer.optimizer = optimizer_with_merger_rate(trainer, recipe.merger_learning_rate)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(curves_to_mlflow())
    return trainer


def collator(encoder: Encoder, rows: Sequence[Row]) -> Callable[[list[dict[str, int]]], Any]:
    """Makes a padded batch, labels on the answers only, out of the rows with the given indices."""

    def collate(indices: list[dict[str, int]]) -> Any:
        return encoder.collate(
            [rows[entry["index"]] for entry in indices], answers=True, side="right"
        )

    return collate


def optimizer_with_merger_rate(trainer: Any, merger_rate: float) -> Any:
    """The trainer's own optimizer, with the vision merger's adapter at a rate of its own."""
    cls, options = type(trainer).get_optimizer_cls_and_kwargs(trainer.args)
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            groups[f".{models.VISION_TOWER}." in name].append(parameter)
    if not groups[True]:
        raise UserError("merger_learning_rate is set, but this base has no known vision merger")
    return cls([{"params": groups[False]}, {"params": groups[True], "lr": merger_rate}], **options)


def curves_to_mlflow() -> Any:
    """Sends the trainer's curves to the open MLflow run and to a progress bar."""
    import mlflow
    from transformers import TrainerCallback

    class CurvesToMlflow(TrainerCallback):
        def __init__(self) -> None:
            self.stack = ExitStack()
            self.remark = ""
            # A training that is cut off never ends, and a bar left open hides the cursor.
            atexit.register(self.stack.close)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.advance = self.stack.enter_context(progress.bar("train", state.max_steps))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.advance(1, self.remark)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs:
                self.remark = f"loss {logs['loss']:.3f}"
            found = {key: value for key, value in logs.items() if key in TRACKED}
            mlflow.log_metrics(found, step=state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stack.close()

    return CurvesToMlflow()


def peak_memory() -> int:
    """Bytes at the peak so far: of the GPU's allocator, or of the process without a GPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
