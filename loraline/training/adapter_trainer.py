"""What a trainer of adapters does otherwise than transformers' Trainer, whatever its batches are.

Rates of their own for parts of the model, and checkpoints without a pickle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from loraline.training import checkpoint, exchange, pissa


class AdapterTrainer(Trainer):
    """A Trainer of a PEFT model that nothing wraps: processes sum their gradients by `exchange`."""

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

    ratio: float
    """How much faster LoRA's B learns than its A."""

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        return model

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        exchange.begin_alike(self.learning())

    def learning(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, in the same order in every process."""
        return [p for p in self.model.parameters() if p.requires_grad]

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
            if f".{path}." in f".{name}":
                return self.rates[path]
        return float(self.args.learning_rate)

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
            # More processes than before have no state to go on from.
            if stem.with_suffix(".json").exists():
                checkpoint.set_random_state(checkpoint.read_state(stem))
