"""The trainer: transformers' Trainer on packed rows, learning an adapter and nothing else."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from loraline.base import locate
from loraline.base.targets import TOWER_BLOCKS, VISION_TOWER
from loraline.errors import UserError
from loraline.training import adapted, attention, checkpoint, loss, neftune, packing, pissa

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.encoding import Encoder, Row
    from loraline.profiles import Profile
    from loraline.training.memory import Plan


def build(
    recipe: Profile,
    base: locate.Base,
    encoder: Encoder,
    rows: dict[str, list[Row]],
    plan: Plan,
    scratch: Path,
) -> PackedTrainer:
    """The trainer of a profile on its base; `rows` has the splits train and validation."""
    on_gpu = torch.cuda.is_available()
    model = adapted.for_training(base, recipe, plan)
    if recipe.neftune_noise_alpha is not None:
        neftune.disturb(model.get_base_model(), recipe.neftune_noise_alpha)
    trainer = PackedTrainer(
        model=model,
        encoder=encoder,
        rows=rows,
        steps=packing.Steps(len(rows["train"]), recipe.rows_per_step, recipe.seed),
        budget=plan.token_budget,
        checkpointing=plan.checkpointing,
        rates={
            VISION_TOWER: recipe.merger_learning_rate,
            TOWER_BLOCKS: recipe.tower_learning_rate,
        },
        ratio=recipe.loraplus_lr_ratio or 1.0,
        patience=recipe.early_stopping_patience,
        initial=pissa.matrices(model) if recipe.init_lora_weights else None,
        args=TrainingArguments(
            output_dir=str(scratch / "trainer"),
            num_train_epochs=recipe.num_train_epochs,
            max_steps=recipe.max_steps or -1,
            # Counted by the trainer's own loader; here they only have to agree with it.
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.lr_scheduler_type,
            warmup_steps=recipe.warmup_steps,
            optim="adamw_torch_fused" if on_gpu else "adamw_torch",
            weight_decay=0.0,
            bf16=on_gpu,
            seed=recipe.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="epoch",
            save_strategy="no",
            # Rows without an image leave a trained tower or merger without gradients.
            ddp_find_unused_parameters=recipe.trains_vision,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_liger_kernel=plan.fused,
            # The loss is `loraline.training.loss`, which keeps fewer logits.
            liger_kernel_config={"fused_linear_cross_entropy": False, "swiglu": True},
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@dataclass(frozen=True)
class Step:
    """What one process contributes to an optimizer step."""

    rows: list[int]
    """Indices of its training rows; empty if there are fewer rows than processes."""

    batches: list[packing.MicroBatch]
    """Those rows, packed within `budget` tokens."""

    targets: int
    """Answer tokens of the whole step, all processes together."""

    budget: int


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, steps: packing.Steps) -> None:
        self.steps = steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.epoch = state.global_step // len(self.steps)


class PackedTrainer(Trainer):
    """A Trainer whose batch is a whole optimizer step: rows first, then packs of them.

    Losses are weighted by answer tokens, over the packs and processes of a step in training and
    over all validation rows in evaluation, so neither depends on how rows were grouped.
    """

    optimizer: Any
    control: Any

    def __init__(
        self,
        *,
        model: Any,
        encoder: Encoder,
        rows: dict[str, list[Row]],
        steps: packing.Steps,
        budget: int,
        checkpointing: bool,
        rates: Mapping[str, float | None],
        ratio: float,
        patience: int | None,
        initial: pissa.Matrices | None,
        **options: Any,
    ) -> None:
        super().__init__(
            model=model,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            **options,
        )
        self.encoder, self.rows, self.steps = encoder, rows, steps
        self.budget, self.rates, self.ratio = budget, rates, ratio
        self.rope_index = getattr(model.get_base_model().model, "get_rope_index", None)
        self.attention = attention.use(model.get_base_model())
        loss.give_losses(model.get_base_model())
        if checkpointing:
            self.recompute_activations()
        self.language_parameters = sum(
            count for name, count in sizes(model) if VISION_TOWER not in name
        )
        self.tokens_seen = 0
        self.ran_out = False
        self.patience, self.initial = patience, initial
        self.best: dict[str, Any] = {}
        self.seconds = self.paused = 0.0
        self.pace = (time.monotonic(), 0)
        self.add_callback(EpochOrder(steps))

    def recompute_activations(self) -> None:
        """Checkpoint every layer that has something to learn before it."""
        causal = self.model.get_base_model()
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers lets embeddings demand gradients, for checkpointing of the old kind; it sends
        # the backward pass through a frozen vision tower.
        causal.disable_input_require_grads()

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer, with rates of their own for the vision parts and for LoRA's B."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls(self.parameter_groups(), **options)
        return self.optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: dict[float, list[Any]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                ratio = self.ratio if ".lora_B." in name else 1.0
                groups.setdefault(self.rate_of(name) * ratio, []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]

    def rate_of(self, name: str) -> float:
        """Learning rate of a parameter by the longest of the paths that have one of their own."""
        for path in sorted(self.rates, key=len, reverse=True):
            if f".{path}." in name:
                rate = self.rates[path]
                assert rate is not None, f"{name} is adapted without a rate"
                return rate
        return float(self.args.learning_rate)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        return [next(epoch_iterator)], None

    def floating_point_ops(self, inputs: Step) -> int:
        return 0

    def get_train_dataloader(self) -> Any:
        return self.loader(range(len(self.rows["train"])), self.steps, self.step_of)

    def loader(self, indices: Sequence[int], batches: Any, collate: Any) -> Any:
        on_gpu = self.args.device.type == "cuda"
        return DataLoader(
            indices,
            batch_sampler=batches,
            collate_fn=collate,
            # Images are decoded while the GPU works; without one there is no core to spare.
            num_workers=min(8, (os.cpu_count() or 2) - 1) if on_gpu else 0,
            # Of its own, so that loading does not move the state that dropout draws from.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def step_of(self, indices: Sequence[int], budget: int | None = None) -> Step:
        """This process' share of a step's rows, packed."""
        rows = [self.rows["train"][index] for index in indices]
        mine = packing.share(
            [len(row) for row in rows], self.args.process_index, self.args.world_size
        )
        budget = budget or self.budget
        batches = self.packs([rows[i] for i in mine] or rows[:1], budget)
        targets = sum(row.targets for row in rows)
        return Step([indices[i] for i in mine], batches, targets, budget)

    def packs(self, rows: Sequence[Row], budget: int) -> list[packing.MicroBatch]:
        groups = packing.plan([len(row) for row in rows], budget)
        return [packing.pack(self.encoder, [rows[i] for i in g], self.rope_index) for g in groups]

    def train(self, *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        result = super().train(*arguments, **options)
        self.seconds = time.monotonic() - started - self.paused
        return result

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            now = (time.monotonic() - self.paused, self.tokens_seen)
            elapsed, tokens = (after - before for after, before in zip(now, self.pace, strict=True))
            logs["tokens_per_second"] = tokens * self.args.world_size / max(elapsed, 1e-9)
            self.pace = now
        super().log(logs, *rest)

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one optimizer step; returns this process' part of its mean loss.

        Raises UserError when it does not fit the GPU for the second time.
        """
        model.train()
        try:
            return self.accumulate(model, inputs)
        except torch.OutOfMemoryError as error:
            if self.ran_out:
                raise UserError(
                    f"a step does not fit the GPU, not even {self.budget} tokens a pass; lower "
                    "max_length, set memory: small, or use a larger card"
                ) from error
        # Smaller packs of the same rows: slower, but the same step.
        self.ran_out = True
        # Passes are often far from full; half of the budget could be as long as before.
        largest = max(pack["input_ids"].numel() for pack in inputs.batches)
        self.budget = min(self.budget, largest) // 2
        self.recompute_activations()
        torch.cuda.empty_cache()
        model.zero_grad()
        return self.training_step(model, inputs)

    def accumulate(self, model: Any, step: Step) -> Tensor:
        if step.budget > self.budget:
            packs = self.packs([self.rows["train"][i] for i in step.rows], self.budget)
        else:
            packs = step.batches
        # A process without rows takes part in the exchange of gradients with nothing to say.
        weight = self.args.world_size / step.targets if step.rows else 0.0
        total = torch.zeros((), device=self.args.device)
        for number, pack in enumerate(packs, 1):
            last = number == len(packs)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                part = model(**self._prepare_inputs(pack)).sum() * weight
                self.accelerator.backward(part)
            total += part.detach()
            self.tokens_seen += pack["input_ids"].numel()
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss of a validation answer token in nats; the same for any packing."""
        if self.told_to_stop():
            return {}
        started = time.monotonic()
        rows = self.rows["validation"]
        packs = packing.plan([len(row) for row in rows], self.budget)

        def pack(indices: Sequence[int]) -> packing.MicroBatch:
            return packing.pack(self.encoder, [rows[i] for i in indices], self.rope_index)

        mine = packs[self.args.process_index :: self.args.world_size]
        total = torch.zeros((), device=self.args.device)
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for batch in self.loader(range(len(rows)), mine, pack):
                total += self.model(**self._prepare_inputs(batch)).sum()
        mean = float(self.accelerator.reduce(total)) / sum(row.targets for row in rows)
        metrics = {"eval_loss": mean, "eval_perplexity": math.exp(min(mean, 700))}
        self.paused += time.monotonic() - started
        self.log(dict(metrics))
        self.remember(mean)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def told_to_stop(self) -> bool:
        """Whether training stops within an epoch, where an evaluation would not be otherwise."""
        step = self.state.global_step
        within = step < self.state.max_steps and step % len(self.steps) != 0
        return within and bool(self.control.should_training_stop)

    def remember(self, eval_loss: float) -> None:
        """Keep the adapter with the lowest validation loss; stop when none has come for long."""
        if eval_loss < self.best.get("eval_loss", math.inf):
            learned = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            weights = {name: p.detach().cpu().clone() for name, p in learned.items()}
            self.best = {"eval_loss": eval_loss, "weights": weights}
        losses = [entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry]
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if self.patience is not None and since_best >= self.patience:
            self.control.should_training_stop = True

    def restore_best(self) -> float:
        """Give the model the adapter with the lowest validation loss; returns that loss."""
        parameters = dict(self.model.named_parameters())
        for name, weight in self.best["weights"].items():
            parameters[name].data.copy_(weight)
        return float(self.best["eval_loss"])

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter that is served: PEFT's files, on the base as it was."""
        if self.initial is None:
            self.model.save_pretrained(folder)
        else:
            pissa.save(self.model, self.initial, folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter as it is trained, and not the arguments, which are a pickle."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.model.save_pretrained(folder)
            if self.initial is not None:
                pissa.write(self.initial, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            checkpoint.write_state(self.best, Path(output_dir, "best"))
            checkpoint.write_state(self.optimizer.state_dict(), Path(output_dir, "optimizer"))
            checkpoint.write_state(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler"))

    def _load_optimizer_and_scheduler(self, checkpoint_dir: str | None) -> None:
        if checkpoint_dir is not None:
            folder = Path(checkpoint_dir)
            if self.initial is not None:
                self.initial = pissa.adopt(self.model, self.initial, folder)
            self.best = checkpoint.read_state(folder / "best")
            self.optimizer.load_state_dict(checkpoint.read_state(folder / "optimizer"))
            self.lr_scheduler.load_state_dict(checkpoint.read_state(folder / "scheduler"))

    def _save_rng_state(self, output_dir: str) -> None:
        stem = Path(output_dir, f"random-{self.args.process_index}")
        checkpoint.write_state(checkpoint.random_state(), stem)

    def _load_rng_state(self, checkpoint_dir: str | None) -> None:
        if checkpoint_dir is not None:
            stem = Path(checkpoint_dir, f"random-{self.args.process_index}")
            checkpoint.set_random_state(checkpoint.read_state(stem))


def sizes(model: Any) -> Iterator[tuple[str, int]]:
    """Names and sizes of a model's parameters; packed 4-bit weights count as what they hold."""
    for name, parameter in model.named_parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        yield name, math.prod(shape) if shape else parameter.numel()


def peak_memory() -> int:
    """Bytes at the peak so far: of the GPU's allocator, or of the process without a GPU."""
    import resource

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
