"""The trainer: transformers' Trainer on packed rows, learning what the profile lets learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback

from loraline.base import locate
from loraline.errors import UserError
from loraline.training import (
    adapted,
    arguments,
    attention,
    exchange,
    launch,
    loss,
    neftune,
    packing,
    pissa,
    sharding,
)
from loraline.training.adapter_trainer import AdapterTrainer
from loraline.training.clock import Clock
from loraline.training.loading import loader, on_device
from loraline.training.token_budget import TokenBudget

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.encoding import Encoder, Row
    from loraline.profiles.profile import Profile
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
    # Before the model: a process that is alone becomes a group for `sharding`, and transformers
    # would wonder why.
    args = arguments.of(recipe, plan, scratch)
    model = adapted.for_training(base, recipe, plan)
    causal = adapted.causal(model)
    if recipe.neftune_noise_alpha is not None:
        neftune.add_noise(causal, recipe.neftune_noise_alpha)
    language = adapted.language_parameters(model)
    if plan.sharded:
        sharding.shard(model, causal, offloaded=plan.offloaded)
    trainer = PackedTrainer(
        model=model,
        encoder=encoder,
        rows=rows,
        steps=packing.Steps(len(rows["train"]), recipe.rows_per_step, recipe.seed),
        plan=plan,
        flops=(6 if recipe.train == "full" else 4) * language,
        rates=arguments.rates(recipe),
        ratio=recipe.loraplus_lr_ratio or 1.0,
        patience=recipe.early_stopping_patience,
        initial=pissa.matrices(model) if recipe.init_lora_weights else None,
        args=args,
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

    tokens: int
    """Tokens of the whole step, all processes together."""

    targets: int
    """Those of them that are learned."""

    budget: int


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, steps: packing.Steps) -> None:
        self.steps = steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.epoch = state.global_step // len(self.steps)


class PackedTrainer(AdapterTrainer):
    """A Trainer whose batch is a whole optimizer step: rows first, then packs of them.

    Losses are weighted by answer tokens, over the packs and processes of a step in training and
    over all validation rows in evaluation, so neither depends on how rows were grouped.
    """

    def __init__(
        self,
        *,
        model: Any,
        encoder: Encoder,
        rows: dict[str, list[Row]],
        steps: packing.Steps,
        plan: Plan,
        flops: int,
        rates: Mapping[str, float],
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
        assert self.args.world_size == launch.world(), (
            f"{launch.world()} processes were started and {self.args.world_size} train together"
        )
        # Nothing wraps the model: gradients are summed here (`exchange`), once a step is whole.
        self.is_distributed_loading_by_transformers = True
        self.encoder, self.rows, self.steps = encoder, rows, steps
        self.budget, self.sharded = TokenBudget(plan.token_budget), plan.sharded
        self.rates, self.ratio, self.flops = rates, ratio, flops
        causal = adapted.causal(model)
        self.rope_index = getattr(causal.model, "get_rope_index", None)
        self.attention = attention.use(causal, self.args.device)
        loss.return_losses(causal)
        if plan.checkpointing:
            adapted.recompute_activations(model)
        self.tokens_seen = 0
        self.patience, self.initial = patience, initial
        self.best = {}
        self.clock = Clock()
        self.add_callback(EpochOrder(steps))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        return [next(epoch_iterator)], None

    def floating_point_ops(self, inputs: Step) -> int:
        return 0

    def store_flos(self) -> None:
        """Nothing: the trainer would ask all processes for zeros, step by step."""

    def get_train_dataloader(self) -> Any:
        return loader(range(len(self.rows["train"])), self.steps, self.step_of, self.args)

    def step_of(self, indices: Sequence[int]) -> Step:
        """This process' share of a step's rows, packed."""
        rows = [self.rows["train"][index] for index in indices]
        share = packing.share(
            [len(row) for row in rows], self.args.process_index, self.args.world_size
        )
        batches = self.packs([rows[i] for i in share], self.budget.tokens)
        tokens, targets = sum(map(len, rows)), sum(row.targets for row in rows)
        return Step([indices[i] for i in share], batches, tokens, targets, self.budget.tokens)

    def packs(self, rows: Sequence[Row], budget: int) -> list[packing.MicroBatch]:
        groups = packing.plan([len(row) for row in rows], budget)
        return [packing.pack(self.encoder, [rows[i] for i in g], self.rope_index) for g in groups]

    def train(self, *arguments: Any, **options: Any) -> Any:
        with self.clock.running():
            return super().train(*arguments, **options)

    def pace(self) -> float:
        return self.clock.pace(self.tokens_seen)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        check_finite(logs, self.state.global_step)
        super().log(logs, *rest)

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one optimizer step; returns this process' part of its mean loss.

        Raises UserError as `within_memory` does.
        """
        model.train()
        longest = max((batch["input_ids"].numel() for batch in inputs.batches), default=0)
        summed = self.within_memory(lambda: self.accumulate(model, inputs), longest)
        if not self.sharded:
            exchange.sum_gradients(self.trainable_parameters())
        self.tokens_seen += inputs.tokens
        # The trainer logs the mean of the processes' losses.
        return summed * self.args.world_size

    def within_memory(self, work: Callable[[], Tensor], longest: int) -> Tensor:
        """What `work` gives, in smaller passes where it runs out of memory for the first time.

        `longest` is the tokens of its longest pass. Raises UserError, in all processes, where it
        does not fit the GPU of one.
        """
        if self.sharded:
            result = sharding.run_collectively(work)
        else:
            result = self.budget.attempt(work, longest, self.make_room)
        self.budget.check(result is not None, self.args.process_index, self.args.world_size)
        assert result is not None, "`check` ends what has no result"
        return result

    def make_room(self) -> None:
        """Before a step is done again in smaller passes."""
        adapted.recompute_activations(self.model)
        torch.cuda.empty_cache()
        self.model.zero_grad()

    def accumulate(self, model: Any, step: Step) -> Tensor:
        """Add up the gradients of a step's packs; this process' part of the step's mean loss."""
        if step.budget > self.budget.tokens:
            packs = self.packs([self.rows["train"][i] for i in step.rows], self.budget.tokens)
        else:
            packs = step.batches
        total = torch.zeros((), device=self.args.device)
        for pack, counts in self.passes(packs, self.spare):
            part = counts * model(**on_device(pack, self.args.device)).sum() / step.targets
            self.accelerator.backward(part)
            total += part.detach()
        return total

    @cached_property
    def spare(self) -> packing.MicroBatch:
        """The shortest row, for passes that count nothing."""
        return self.packs([min(self.rows["train"], key=len)], self.budget.tokens)[0]

    def passes(self, passes: Sequence[Any], spare: Any) -> Iterator[tuple[Any, bool]]:
        """Passes of this process, each with whether it counts; see `sharding.equal_passes`."""
        if self.sharded:
            return sharding.equal_passes(passes, spare)
        return zip(passes, repeat(True), strict=False)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss of a validation answer token in nats; the same for any packing."""
        if self.stops_within_epoch():
            return {}
        with self.clock.paused():
            mean = self.validation_loss()
        metrics = {"eval_loss": mean, "eval_perplexity": math.exp(min(mean, 700))}
        self.log(dict(metrics))
        self.keep_best(mean)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def validation_loss(self) -> float:
        """Mean loss of the validation rows' answer tokens; each process has its share of rows.

        Raises UserError as `within_memory` does.
        """
        rows = self.rows["validation"]
        lengths = [len(row) for row in rows]
        share = packing.share(lengths, self.args.process_index, self.args.world_size)
        own_rows = [rows[i] for i in share]
        longest = min(self.budget.tokens, sum(map(len, own_rows)))
        self.model.eval()
        summed = self.within_memory(lambda: self.sum_of_losses(own_rows), longest)
        return exchange.total(summed) / sum(row.targets for row in rows)

    def sum_of_losses(self, rows: Sequence[Row]) -> Tensor:
        """Losses of all answer tokens of some rows, added up in float64."""
        planned = packing.plan([len(row) for row in rows], self.budget.tokens)
        rows = [*rows, min(self.rows["validation"], key=len)]
        leveled = list(self.passes(planned, [len(rows) - 1]))
        packs = [indices for indices, _ in leveled]

        def pack(indices: Sequence[int]) -> packing.MicroBatch:
            return packing.pack(self.encoder, [rows[i] for i in indices], self.rope_index)

        total = torch.zeros((), device=self.args.device, dtype=torch.float64)
        with torch.no_grad(), self.accelerator.autocast():
            batches = loader(range(len(rows)), packs, pack, self.args)
            for batch, (_, counts) in zip(batches, leveled, strict=True):
                total += counts * self.model(**on_device(batch, self.args.device)).sum()
        return total

    def stops_within_epoch(self) -> bool:
        """Whether training stops within an epoch, where an evaluation would not be otherwise."""
        step = self.state.global_step
        within = step < self.state.max_steps and step % len(self.steps) != 0
        return within and bool(self.control.should_training_stop)


def check_finite(logs: Mapping[str, float], step: int) -> None:
    """Raise UserError, in all processes, if a loss is not finite: the training cannot recover."""
    named = {"loss": "loss", "grad_norm": "loss", "eval_loss": "validation loss"}
    for key, name in named.items():
        if not math.isfinite(logs.get(key, 0.0)):
            raise UserError(
                f"the {name} is not a number at step {step}; lower "
                "learning_rate, or look for broken rows around there"
            )
