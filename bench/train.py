"""Training speed and memory: plain TRL beside ours, on the same rows, in one run.

    python bench/train.py --task text --task vision

The bases have the real shapes and random weights, so nothing is fetched; a step costs the same as
with trained ones. Each arm runs in a process of its own, after warm-up steps that are not counted.

One script, since a bench is read and run alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

ROWS_PER_STEP = 16
WARMUP = 3
OURS = {
    "small": {"memory": "small"},
    "fast": {"memory": "fast"},
    "fp8": {"memory": "fast", "quantization": "fp8"},
    "fp8-small": {"memory": "small", "quantization": "fp8"},
    "full": {"memory": "auto", "train": "full", "quantization": "none", "export": "merged"},
}
"""What our arms change in the profile."""

ARMS = ("trl", *OURS)
TASKS = ("text", "vision")


@click.command()
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), default=TASKS)
@click.option(
    "--arm", "arms", multiple=True, type=click.Choice(ARMS), default=("trl", "small", "fast")
)
@click.option("--steps", default=15, show_default=True, help="Optimizer steps, warm-up included.")
@click.option("--rows-per-step", default=ROWS_PER_STEP, show_default=True, help="A GPU.")
@click.option(
    "--gpus",
    default=(1,),
    multiple=True,
    show_default=True,
    help="Run our arms on so many GPUs; may be given several times.",
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the random bases.")
@click.option(
    "--bases", type=click.Path(path_type=Path), help="Folder that random bases are kept in."
)
@click.option(
    "--kernels", type=click.Path(path_type=Path), help="Folder for tables of each arm's kernels."
)
def train(
    tasks: tuple[str, ...],
    arms: tuple[str, ...],
    steps: int,
    rows_per_step: int,
    gpus: tuple[int, ...],
    scratch: Path | None,
    bases: Path | None,
    kernels: Path | None,
) -> None:
    """Print tokens a second, peak memory and model FLOP utilization of each arm.

    What each arm has measured is printed as a line of JSON as well.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        environment()
        for task in tasks:
            base = kept_base(task, bases or Path(folder))
            figures = {}
            for arm in arms:
                for count in (1,) if arm == "trl" else gpus:
                    name = arm if count == 1 else f"{arm}, {count} GPUs"
                    table = kernels / f"{task}-{arm}-{count}.txt" if kernels else None
                    figures[name] = run(task, arm, base, steps, rows_per_step * count, count, table)
                    click.echo(json.dumps(figures[name]))
            report(task, figures)


def kept_base(task: str, folder: Path) -> Path:
    """The random base of a task in a folder, made if it is not there."""
    base = folder / task
    if not base.exists():
        call(__file__, "make-base", task, str(base))
    return base


def run(
    task: str, arm: str, base: Path, steps: int, rows: int, gpus: int, kernels: Path | None = None
) -> dict[str, Any]:
    """Figures of one arm, from processes of its own; `rows` is rows a step, all GPUs together."""
    table = [str(kernels)] if kernels else []
    given = ["run-arm", task, arm, str(base), str(steps), str(rows), *table]
    lines = call(*launcher(gpus), __file__, *given)
    return dict(json.loads(lines.splitlines()[-1]))


def launcher(gpus: int) -> list[str]:
    """What starts a script in a process for each of several GPUs."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return command if gpus > 1 else []


def call(*arguments: str) -> str:
    """Run a Python program; its standard output."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def environment() -> None:
    """Print the versions and the card, with the rate of a large bf16 product measured on it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    click.echo(f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}")
    click.echo(", ".join(f"{name} {number}" for name, number in versions.items()))
    rate = call(__file__, "matmul-rate").split()
    click.echo(f"{' '.join(rate[1:])}, {float(rate[0]) / 1e12:.0f} TFLOP/s measured in bf16")


def report(task: str, arms: dict[str, dict[str, float]]) -> None:
    click.echo(f"\n| {task} | tokens/s | x TRL | MFU | peak GiB | x TRL | s/step |")
    click.echo("|---|---|---|---|---|---|---|")
    plain = arms.get("trl")
    for arm, figures in arms.items():
        speed = figures["tokens_per_second"] / plain["tokens_per_second"] if plain else math.nan
        space = figures["peak_gib"] / plain["peak_gib"] if plain else math.nan
        click.echo(
            f"| {arm} | {figures['tokens_per_second']:,.0f} | {speed:.2f} | {figures['mfu']:.2f} "
            f"| {figures['peak_gib']:.2f} | {space:.2f} | {figures['seconds_per_step']:.3f} |"
        )


def make_base(task: str, folder: Path) -> None:
    """Write a base of real shape with random weights, and the tokenizer of a tiny one."""
    import shutil

    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        MistralConfig,
    )

    tiny = ROOT / "test_data" / task / "base"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    special = AutoConfig.from_pretrained(tiny)
    if task == "text":
        # Mistral-7B-v0.1: the defaults of the class are its shape.
        config = MistralConfig(bos_token_id=special.bos_token_id, eos_token_id=special.eos_token_id)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        config = qwen2_5_vl_3b(special)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        processor = (folder / "processor_config.json").read_text()
        processor = processor.replace("Qwen3VLProcessor", "Qwen2_5_VLProcessor")
        processor = processor.replace("Qwen3VLVideoProcessor", "Qwen2VLVideoProcessor")
        (folder / "processor_config.json").write_text(processor)
    model.save_pretrained(folder)


def qwen2_5_vl_3b(special: Any) -> Any:
    """Shape of Qwen/Qwen2.5-VL-3B-Instruct, as its config.json gives it."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
        },
        tie_word_embeddings=True,
        image_token_id=special.image_token_id,
        video_token_id=special.video_token_id,
        vision_start_token_id=special.vision_start_token_id,
        vision_end_token_id=special.vision_end_token_id,
    )


def texts(count: int) -> list[tuple[str, str]]:
    """Questions and answers of uneven length: log-normal, a few of them near the limit."""
    rng = random.Random(0)

    def words(tokens: float) -> str:
        return " ".join(
            rng.choice(("people", "name", "where", "lives")) for _ in range(int(tokens))
        )

    return [
        (
            words(min(500, rng.lognormvariate(4.0, 0.8))),
            words(min(200, rng.lognormvariate(3.4, 0.8))),
        )
        for _ in range(count)
    ]


def pictures(count: int) -> list[tuple[bytes, str]]:
    """JPEG photographs of noise blocks in many sizes, and answers of 10 to 100 words."""
    from PIL import Image

    rng = random.Random(0)
    rows = []
    for _ in range(count):
        small = Image.frombytes("RGB", (16, 16), rng.randbytes(768))
        image = small.resize((rng.randrange(224, 900), rng.randrange(224, 700)))
        file = io.BytesIO()
        image.save(file, "JPEG")
        rows.append((file.getvalue(), " ".join(["x + y"] * rng.randrange(5, 40))))
    return rows


def recipe_for(task: str, base: Path, rows_per_step: int, steps: int) -> Any:
    """The standard profile for text; rank 16 on all projections for vision."""
    from loraline.profiles import Profile

    common = {
        "base": str(base),
        "rows_per_step": rows_per_step,
        "max_steps": steps,
        "max_length": 2048,
        "warmup_steps": 2,
    }
    if task == "text":
        return Profile(
            r=8,
            lora_alpha=16,
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
            **common,
        )
    return Profile(
        modality="vision",
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=(
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        min_pixels=3136,
        max_pixels=401408,
        **common,
    )


class Clock:
    """A trainer callback: seconds and tokens of the steps after warm-up."""

    def __new__(cls) -> Any:
        import torch
        from transformers import TrainerCallback

        class Steps(TrainerCallback):
            seconds = 0.0
            steps = 0
            counted = 0
            tokens = 0
            passes = 0

            def __init__(self) -> None:
                # Seconds of the host in each step: launching its passes, and with the exchange.
                self.launching: list[float] = []
                self.stepping: list[float] = []
                self.planned: dict[str, Any] = {}

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARMUP:
                    torch.cuda.synchronize()
                    self.started, self.counted = time.perf_counter(), self.tokens

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == state.max_steps:
                    torch.cuda.synchronize()
                    self.seconds = time.perf_counter() - self.started
                    self.steps = state.global_step - WARMUP

        return Steps()


def encoder_for(base: Path, recipe: Any) -> Any:
    from loraline.base.encoding import Encoder

    return Encoder(
        base, recipe.modality, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
    )


def rows_for(task: str, encoder: Any, count: int) -> list[Any]:
    """The task's questions or pictures with their answers, encoded."""
    from loraline.base.encoding import Row
    from loraline.records import from_prompt

    if task == "text":
        words = encoder.tokenizer
        pairs = texts(count)
        return [Row(words(q).input_ids, [*words(a).input_ids, encoder.end]) for q, a in pairs]
    return [
        encoder.encode(from_prompt("Read the picture.", "", answer, image))
        for image, answer in pictures(count)
    ]


def run_ours(task: str, arm: str, base: Path, steps: int, rows_per_step: int) -> tuple[Any, Any]:
    from transformers.trainer_utils import IntervalStrategy

    from loraline.base.locate import locate
    from loraline.training import memory, trainer
    from loraline.training.machine import Machine

    recipe = recipe_for(task, base, rows_per_step, steps)
    encoder = encoder_for(base, recipe)
    rows = rows_for(task, encoder, rows_per_step * steps)
    located = locate(str(base), None)
    recipe = recipe.model_copy(update=OURS[arm])
    machine = Machine.here()
    plan, table = memory.choose(recipe, located, rows, machine)
    click.echo(table, err=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = trainer.build(
            recipe, located, encoder, {"train": rows, "validation": rows[:16]}, plan, Path(scratch)
        )
        clock = Clock()
        made.add_callback(clock)
        accumulate, training_step = made.accumulate, made.training_step

        def counting(model: Any, step: Any) -> Any:
            # Of this process, so that the figures of several can be told apart.
            clock.tokens += step.tokens / made.args.world_size
            clock.passes += len(step.batches)
            begun = time.perf_counter()
            summed = accumulate(model, step)
            clock.launching.append(time.perf_counter() - begun)
            return summed

        def timed(*given: Any) -> Any:
            begun = time.perf_counter()
            result = training_step(*given)
            clock.stepping.append(time.perf_counter() - begun)
            return result

        made.accumulate, made.training_step = counting, timed
        made.args.eval_strategy = IntervalStrategy.NO
        made.train()
        if machine is not None:
            estimated = memory.estimate(recipe, located, rows, plan, machine.cards)
            clock.planned = {
                "plan": table.partition("\n")[0],
                "estimated_gib": estimated.total / memory.GIB,
                "alone": on_one(recipe, located, rows, machine),
            }
    return made, clock


def on_one(recipe: Any, base: Any, rows: list[Any], machine: Any) -> str:
    """What the plan of memory is with one card of a machine, or why there is none."""
    from loraline.errors import UserError
    from loraline.training import memory

    try:
        _, table = memory.choose(recipe, base, rows, dataclasses.replace(machine, cards=1))
    except UserError as error:
        return str(error)
    return table.partition("\n")[0]


def run_trl(task: str, base: Path, steps: int, rows_per_step: int) -> tuple[Any, Any]:
    """SFTTrainer as its documentation has it for QLoRA: four rows a pass, checkpointing on."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from loraline.base import targets

    recipe = recipe_for(task, base, rows_per_step, steps)
    count = rows_per_step * steps
    if task == "text":
        words = AutoTokenizer.from_pretrained(base)
        words.pad_token = words.pad_token or words.eos_token
        data = Dataset.from_list([{"prompt": q, "completion": a} for q, a in texts(count)])
    else:
        words = AutoProcessor.from_pretrained(base)
        words.image_processor.size = {"shortest_edge": 3136, "longest_edge": 401408}
        data = [
            {
                "images": [Image.open(io.BytesIO(image))],
                "prompt": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image"},
                            {"type": "text", "text": "Read the picture."},
                        ],
                    }
                ],
                "completion": [
                    {"role": "assistant", "content": [{"type": "text", "text": answer}]}
                ],
            }
            for image, answer in pictures(count)
        ]
        data = Dataset.from_list(data)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "model.visual"],
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        made = SFTTrainer(
            model=str(base),
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=rows_per_step // 4,
                optim="paged_adamw_8bit",
                bf16=True,
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
        training_step = made.training_step

        def counting(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            clock.tokens += int(inputs["attention_mask"].sum())
            return training_step(model, inputs, *rest, **options)

        made.training_step = counting
        made.train()
    return made, clock


def run_arm(
    task: str, arm: str, base: Path, steps: int, rows_per_step: int, kernels: Path | None = None
) -> None:
    """Run one arm; its figures as the last line of standard output."""
    import torch

    from loraline.training import allocator, launch

    allocator.follow_allocated()
    launch.join()
    torch.cuda.reset_peak_memory_stats()
    if arm == "trl":
        made, clock = run_trl(task, base, steps, rows_per_step)
    else:
        made, clock = run_ours(task, arm, base, steps, rows_per_step)
    world = made.args.world_size
    tokens = (clock.tokens - clock.counted) * world
    rate, *_ = matmul_rate()
    figures = {
        "task": task,
        "arm": arm,
        "gpus": world,
        "tokens_per_second": tokens / clock.seconds,
        "mfu": (6 if arm == "full" else 4)
        * parameters(task, base)
        * tokens
        / clock.seconds
        / rate
        / world,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "seconds_per_step": clock.seconds / clock.steps,
        "host_seconds_launching": statistics.mean([0, *clock.launching][WARMUP:]),
        "host_seconds_in_step": statistics.mean([0, *clock.stepping][WARMUP:]),
        "passes": clock.passes,
        **clock.planned,
        "loss": made.state.log_history[-1].get("train_loss", math.nan),
        "losses": [entry["loss"] for entry in made.state.log_history if "loss" in entry],
    }
    if kernels and arm in OURS:
        kernels.parent.mkdir(parents=True, exist_ok=True)
        try:
            table = kernel_table(made, rows_per_step)
        except RuntimeError:
            table = traceback.format_exc()  # The figures are there all the same.
        if made.is_world_process_zero():
            kernels.write_text(table)
    if made.is_world_process_zero():
        print(json.dumps(figures))


def kernel_table(made: Any, rows_per_step: int) -> str:
    """Where the time of a step goes, kernel by kernel, and how long the GPU had work."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step = made.step_of(range(rows_per_step))
    made.training_step(made.model, step)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(2):
            made.training_step(made.model, step)
        torch.cuda.synchronize()
    took = time.perf_counter() - begun
    averages = seen.key_averages()
    kernels = [event for event in averages if event.device_type == DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    head = f"two steps: {took:.3f} s under the profiler, kernels {busy:.3f} s\n"
    return head + averages.table(sort_by="self_device_time_total", row_limit=45)


def parameters(task: str, base: Path) -> int:
    """Parameters of the language model, as MFU counts them (PaLM, arXiv 2204.02311, appendix B).

    Frozen weights take two FLOPs a token forward and two backward. A vision tower's are left out,
    so the figure is too low for vision.
    """
    from safetensors import safe_open

    count = 0
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                if "visual" not in name:
                    count += math.prod(weights.get_slice(name).get_shape())
    return count


def matmul_rate() -> tuple[float, str]:
    """FLOP/s of an 8192-wide bf16 product of random numbers, median of 20, and the card's name."""
    import torch

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


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make-base", task, folder]:
            make_base(task, Path(folder))
        case ["run-arm", task, arm, base, steps, rows_per_step, *kernels]:
            table = Path(*kernels) if kernels else None
            run_arm(task, arm, Path(base), int(steps), int(rows_per_step), table)
        case ["matmul-rate"]:
            print(*matmul_rate())
        case _:
            train()
