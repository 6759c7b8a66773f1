"""Differences from transformers' Trainer that do not depend on the batches.

Separate learning rates for parts of the model, checkpoints without pickle, and sharded weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from loraline.training import checkpoint, exchange, pissa, sharding
from loraline.training.readings import Reading


class AdapterTrainer(Trainer):
    """A Trainer that wraps no model: `exchange` sums the gradients, or torch sharded ones."""

    optimizer: Any
    control: Any
    patience: int | None
    """Evaluations without a lower validation loss after which training ends."""

    best: dict[str, Any]
    """The lowest validation loss so far, and the adapter's weights with it."""

    initial: pissa.Matrices | None
    """What PiSSA has taken out of the base."""

    rates: Mapping[str, float]
    """Learning rates of the modules below a path that have one of their own."""

    _globalstep_last_logged: int

    reading: Reading | None = None
    """The last step's numbers while they are not logged yet."""

    sharded: bool
    """Whether processes share out the weights (`sharding`)."""

    ratio: float
    """How much faster LoRA's B learns than its A."""

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        return model

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        if not self.sharded:
            exchange.broadcast_parameters(self.trainable_parameters())

    def _clip_grad_norm(self, model: Any) -> Any:
        return sharding.gathered(super()._clip_grad_norm(model))

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, learning_rate: float | None = None
    ) -> None:
        """As the trainer does it, but a step's numbers are logged while the next one is computed.

        Those of a step after which something is saved, measured or ended are logged before that.
        """
        earlier, self.reading = self.reading, None
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            assert learning_rate is not None, "a step that ends has a rate"
            self.reading = Reading.of(self.state, tr_loss, grad_norm, learning_rate, self.pace())
            self._globalstep_last_logged = self.state.global_step
            tr_loss.zero_()
        if earlier is not None:
            self.log_reading(earlier)
        under_way = self.reading is not None and not (
            self.control.should_save
            or self.control.should_evaluate
            or self.control.should_training_stop
        )
        if self.reading is not None and not under_way:
            self.log_reading(self.reading)
            self.reading = None
        self.control.should_log = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, learning_rate=learning_rate)

    def pace(self) -> float:
        """Tokens a second since the last time that it was asked."""
        raise NotImplementedError

    def log_reading(self, reading: Reading) -> None:
        """Log numbers as those of their step."""
        logs = reading.logs()
        self._total_loss_scalar += logs["loss"]
        position = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch = reading.step, reading.epoch
        self.log(logs)
        self.state.global_step, self.state.epoch = position

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that learn, in the same order in every process."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Values of the parameters that learn, by name; of sharded ones, this process' part."""
        named = self.model.named_parameters()
        return {name: sharding.local(p.detach()) for name, p in named if p.requires_grad}

    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the parameters that learn these values."""
        current = self.trained_weights()
        for name, weight in weights.items():
            current[name].copy_(weight)

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer, with separate rates for the vision parts and for LoRA's B."""
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
        """Learning rate of a parameter: that of the longest path in `rates` that contains it."""
        for path in sorted(self.rates, key=len, reverse=True):
            if f".{path}." in f".{name}":
                return self.rates[path]
        return float(self.args.learning_rate)

    def keep_best(self, eval_loss: float) -> None:
        """Keep the adapter with the lowest validation loss; stop when none has come for long."""
        if eval_loss < self.best.get("eval_loss", math.inf):
            weights = {n: w.cpu().clone() for n, w in self.trained_weights().items()}
            self.best = {"eval_loss": eval_loss, "weights": weights}
        self.control.should_training_stop |= is_stale(self.state.log_history, self.patience)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        # Where a checkpoint was saved after the evaluation that ended the training, it ends again.
        self.control.should_training_stop |= is_stale(self.state.log_history, self.patience)
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **options)

    def restore_best(self) -> float:
        """Give the model the weights with the lowest validation loss; returns that loss."""
        self.set_weights(self.best["weights"])
        return float(self.best["eval_loss"])

    def gather(self) -> dict[str, torch.Tensor]:
        """The whole weights to write at the end, on the CPU, by name: the adapter's, or without an
        adapter all of the model's.

        Every process has to call it; only the first gets weights, the others an empty dict.
        """
        without_adapter = not hasattr(self.model, "peft_config")
        weights = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad or without_adapter:
                weight = sharding.gathered(parameter.detach())
                if self.args.should_save:
                    weights[name] = weight.cpu().clone()
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what has learned, and not the arguments, which are a pickle."""
        folder = Path(output_dir or self.args.output_dir)
        self.write(self.trained_weights(), folder, "weights")
        if self.args.should_save and self.initial is not None:
            pissa.write(self.initial, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.set_weights(self.read(Path(resume_from_checkpoint), "weights"))

    def write(self, state: Any, folder: Path, name: str) -> None:
        """Write a state of the training: the first process all of it, or sharded, each its part."""
        if self.sharded:
            name = f"{name}-{self.args.process_index}-of-{self.args.world_size}"
        if self.sharded or self.args.should_save:
            checkpoint.write_state(state, folder / name)

    def read(self, folder: Path, name: str) -> Any:
        """A state as this process needs it, by however many processes it was written."""
        rank, world = self.args.process_index, self.args.world_size
        if self.sharded and (folder / f"{name}-{rank}-of-{world}.json").exists():
            return checkpoint.read_state(folder / f"{name}-{rank}-of-{world}")
        state = checkpoint.read_joined(folder, name)
        return sharding.cut(state, rank, world) if self.sharded else state

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.write(self.best, Path(output_dir), "best")
        self.write(self.optimizer.state_dict(), Path(output_dir), "optimizer")
        if self.args.should_save:
            checkpoint.write_state(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler"))

    def _load_optimizer_and_scheduler(self, checkpoint_dir: str | None) -> None:
        if checkpoint_dir is not None:
            folder = Path(checkpoint_dir)
            if self.initial is not None:
                self.initial = pissa.adopt(self.model, self.initial, folder)
            self.best = self.read(folder, "best")
            self.optimizer.load_state_dict(self.read(folder, "optimizer"))
            for parameter, moments in self.optimizer.state.items():
                for name, value in moments.items():
                    moments[name] = sharding.as_dtensor(value, parameter) if value.dim() else value
            self.lr_scheduler.load_state_dict(checkpoint.read_state(folder / "scheduler"))

    def _save_rng_state(self, output_dir: str) -> None:
        stem = Path(output_dir, f"random-{self.args.process_index}")
        checkpoint.write_state(checkpoint.random_state(), stem)

    def _load_rng_state(self, checkpoint_dir: str | None) -> None:
        if checkpoint_dir is not None:
            stem = Path(checkpoint_dir, f"random-{self.args.process_index}")
            # More processes than before have no state to go on from.
            if stem.with_suffix(".json").exists():
                checkpoint.set_random_state(checkpoint.read_state(stem))


def is_stale(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Whether as many evaluations as `patience` have come since the lowest validation loss."""
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
