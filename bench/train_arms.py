"""What bench/train.py runs in a process of its own: ours and plain TRL, and how both are timed."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import click
from train_bases import parameters
from train_rows import encoder_for, pictures, recipe_for, rows_for, texts

WARMUP = 3
"""Steps that are not counted."""

OURS: dict[str, dict[str, Any]] = {
    "small": {"memory": "small"},
    "fast": {"memory": "fast"},
    "fp8": {"memory": "fast", "quantization": "fp8"},
    "fp8-small": {"memory": "small", "quantization": "fp8"},
    "full": {"memory": "auto", "train": "full", "quantization": "none", "export": "merged"},
}
"""What our arms change in the profile."""


class Clock:
    """A trainer callback: seconds and tokens of the steps after warm-up."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Steps(TrainerCallback):
            seconds = 0.0
            steps = 0
            counted = 0
            tokens = 0
            passes = 0
            longest = 0

            def __init__(self) -> None:
                # Seconds of the host in each step: launching its passes, and with the exchange.
                self.launching: list[float] = []
                self.stepping: list[float] = []
                self.planned: dict[str, Any] = {}

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARMUP:
                    synchronize()
                    self.started, self.counted = time.perf_counter(), self.tokens

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == state.max_steps:
                    synchronize()
                    self.seconds = time.perf_counter() - self.started
                    self.steps = state.global_step - WARMUP

        return Steps()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_ours(task: str, arm: str, base: Path, steps: int, rows_per_step: int) -> tuple[Any, Any]:
    """The trainer of one of our arms after its steps, and its clock."""
    from transformers.trainer_utils import IntervalStrategy

    from loraline.base.locate import locate
    from loraline.training import memory, trainer
    from loraline.training.machine import Machine

    recipe = recipe_for(task, base, rows_per_step, steps)
    encoder = encoder_for(base, recipe)
    rows = rows_for(task, encoder, rows_per_step * steps)
    located = locate(str(base), None)
    recipe = recipe.model_copy(update=OURS[arm])
    machine = Machine.measured()
    plan, table = memory.choose(recipe, located, rows, machine)
    click.echo(table, err=True)
    with tempfile.TemporaryDirectory() as scratch:
        built = trainer.build(
            recipe, located, encoder, {"train": rows, "validation": rows[:16]}, plan, Path(scratch)
        )
        clock = Clock()
        built.add_callback(clock)
        accumulate, training_step = built.accumulate, built.training_step

        def counting(model: Any, step: Any) -> Any:
            # Of this process, so that the figures of several can be told apart.
            clock.tokens += step.tokens / built.args.world_size
            clock.passes += len(step.batches)
            clock.longest = max(
                [clock.longest, *(batch["input_ids"].numel() for batch in step.batches)]
            )
            begun = time.perf_counter()
            summed = accumulate(model, step)
            clock.launching.append(time.perf_counter() - begun)
            return summed

        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            result = training_step(*arguments)
            clock.stepping.append(time.perf_counter() - begun)
            return result

        built.accumulate, built.training_step = counting, timed
        built.args.eval_strategy = IntervalStrategy.NO
        built.train()
        if machine is not None:
            # Of the longest pass that came, and not of the longest that rows could make.
            as_run = dataclasses.replace(plan, token_budget=clock.longest)
            estimated = memory.estimate(recipe, located, rows, as_run, machine.cards)
            clock.planned = {
                "plan": table.partition("\n")[0],
                "planned_gib": memory.estimate(recipe, located, rows, plan, machine.cards).total
                / memory.GIB,
                "estimated_gib": estimated.total / memory.GIB,
                "one_card": on_one(recipe, located, rows, dataclasses.replace(machine, host=0)),
                "one_card_with_host_memory": on_one(recipe, located, rows, machine),
            }
    return built, clock


def on_one(recipe: Any, base: Any, rows: list[Any], machine: Any) -> str:
    """What the plan of memory is with one card of a machine, or why there is none."""
    from loraline.errors import UserError
    from loraline.training import memory

    try:
        _, table = memory.choose(recipe, base, rows, dataclasses.replace(machine, cards=1))
    except UserError as error:
        return f"refused: {error}"
    lines = table.splitlines()
    return "; ".join([lines[0], *(line.strip() for line in lines[1:] if "peak" in line)])


def run_trl(task: str, base: Path, steps: int, rows_per_step: int) -> tuple[Any, Any]:
    """SFTTrainer as its documentation has it for QLoRA: four rows a pass, checkpointing on.

    On a CPU, where the bench is only tried out, without its optimizer, which is for GPUs.
    """
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from loraline.base import targets

    on_gpu = torch.cuda.is_available()
    recipe = recipe_for(task, base, rows_per_step, steps)
    words, data = trl_rows(task, base, rows_per_step * steps)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "model.visual"],
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=str(base),
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=rows_per_step // 4,
                optim="paged_adamw_8bit" if on_gpu else "adamw_torch",
                bf16=on_gpu,
                max_length=None,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                model_init_kwargs={"quantization_config": nf4, "dtype": torch.bfloat16},
            ),
            train_dataset=data,
            processing_class=words,
            peft_config=LoraConfig(
                r=recipe.r,
                lora_alpha=recipe.lora_alpha,
                lora_dropout=recipe.lora_dropout,
                target_modules=targets.target_modules(
                    recipe.modality, recipe.target_modules, merger=False
                ),
                task_type="CAUSAL_LM",
            ),
            callbacks=[clock],
        )
        count_tokens(trainer, clock)
        trainer.train()
    return trainer, clock


def trl_rows(task: str, base: Path, count: int) -> tuple[Any, Any]:
    """A task's rows as TRL documents them, and the tokenizer or processor that reads them."""
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer

    if task == "text":
        words = AutoTokenizer.from_pretrained(base)
        words.pad_token = words.pad_token or words.eos_token
        pairs = [{"prompt": question, "completion": answer} for question, answer in texts(count)]
        return words, Dataset.from_list(pairs)
    words = AutoProcessor.from_pretrained(base)
    words.image_processor.size = {"shortest_edge": 3136, "longest_edge": 401408}
    prompt = [{"type": "image"}, {"type": "text", "text": "Read the picture."}]
    rows = [
        {
            "images": [Image.open(io.BytesIO(image))],
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        }
        for image, answer in pictures(count)
    ]
    return words, Dataset.from_list(rows)


def count_tokens(trainer: Any, clock: Any) -> None:
    """Let a trainer of Hugging Face count the tokens of its rows, without their padding."""
    training_step = trainer.training_step

    def counting(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        # Rows in one sequence have no padding, and no mask.
        clock.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        clock.passes += 1
        return training_step(model, inputs, *rest, **options)

    trainer.training_step = counting


def run_arm(
    task: str, arm: str, base: Path, steps: int, rows_per_step: int, kernels: Path | None = None
) -> None:
    """Run one arm; its figures as the last line of standard output."""
    from loraline.training import allocator, launch

    allocator.follow_allocated()
    launch.join()
    if arm == "trl":
        trainer, clock = run_trl(task, base, steps, rows_per_step)
    else:
        trainer, clock = run_ours(task, arm, base, steps, rows_per_step)
    measured = figures(task, arm, base, trainer, clock)
    if kernels and arm in OURS:
        kernels.parent.mkdir(parents=True, exist_ok=True)
        try:
            table = kernel_table(trainer, rows_per_step)
        except RuntimeError:
            table = traceback.format_exc()  # The figures are there all the same.
        if trainer.is_world_process_zero():
            kernels.write_text(table)
    if trainer.is_world_process_zero():
        print(json.dumps(measured))


def figures(task: str, arm: str, base: Path, trainer: Any, clock: Any) -> dict[str, Any]:
    """What a trainer and its clock measured."""
    import torch

    world = trainer.args.world_size
    tokens = (clock.tokens - clock.counted) * world
    flops = (6 if arm == "full" else 4) * parameters(base) * tokens
    rate, *_ = matmul_rate()
    on_gpu = torch.cuda.is_available()
    return {
        "task": task,
        "arm": arm,
        "base": base.name,
        "gpus": world,
        "tokens_per_second": tokens / clock.seconds,
        "mfu": flops / clock.seconds / rate / world,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else math.nan,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else math.nan,
        "seconds_per_step": clock.seconds / clock.steps,
        "host_seconds_launching": statistics.mean([0, *clock.launching][WARMUP:] or [0]),
        "host_seconds_in_step": statistics.mean([0, *clock.stepping][WARMUP:] or [0]),
        "passes": clock.passes,
        "longest_pass": clock.longest,
        **clock.planned,
        "loss": trainer.state.log_history[-1].get("train_loss", math.nan),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def kernel_table(trainer: Any, rows_per_step: int) -> str:
    """Where the time of a step goes, kernel by kernel, and how long the GPU had work."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step = trainer.step_of(range(rows_per_step))
    trainer.training_step(trainer.model, step)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(2):
            trainer.training_step(trainer.model, step)
        torch.cuda.synchronize()
    took = time.perf_counter() - begun
    averages = profiler.key_averages()
    kernels = [event for event in averages if event.device_type == DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    head = f"two steps: {took:.3f} s under the profiler, kernels {busy:.3f} s\n"
    return head + averages.table(sort_by="self_device_time_total", row_limit=45)


def matmul_rate() -> tuple[float, str]:
    """FLOP/s of an 8192-wide bf16 product of random numbers, median of 20, and the card's name.

    NaN without a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return math.nan, "no GPU"
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / sorted(times[5:])[10], torch.cuda.get_device_name()
