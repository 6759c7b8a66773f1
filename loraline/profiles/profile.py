"""A training recipe: the keys of all groups, and the rules that concern several of them."""

from __future__ import annotations

from typing import Any, Self

from pydantic import NonNegativeInt, model_validator

from loraline.profiles.keys import Data, Identity, Optimization, Serving, Trainable
from loraline.profiles.limits import OF_A_FORMAT, Gate, check_metrics, check_names, metric_name


# pydantic takes the keys of the last group first.
class Profile(Serving, Optimization, Trainable, Data, Identity):
    """One training recipe. Keys are named as in PEFT and TRL where they are passed through."""

    metrics: tuple[str, ...] = ()
    """Metrics of the user's own, measured beside ours: files ending with .py, or entry points of
    the group `loraline.metrics`."""

    seed: NonNegativeInt = 0
    """Seed of the adapter's initial weights and of the order of rows."""

    gate: Gate = Gate()
    """Limits that a candidate must keep."""

    @model_validator(mode="before")
    @classmethod
    def full_is_whole_and_merged(cls, content: Any) -> Any:
        """Under `train: full`, set quantization and export to their only possible values."""
        if isinstance(content, dict) and content.get("train") == "full":
            return {"quantization": "none", "export": "merged", **content}
        return content

    @model_validator(mode="after")
    def full_trains_no_adapter(self) -> Self:
        if self.train == "lora":
            return self
        if self.quantization != "none":
            raise ValueError(
                "train: full needs quantization: none, because quantized weights cannot learn"
            )
        if self.export != "merged":
            raise ValueError(
                "train: full needs export: merged, because a whole model comes out and no adapter"
            )
        adapter_keys = ("use_dora", "init_lora_weights", "loraplus_lr_ratio")
        if set_keys := [key for key in adapter_keys if getattr(self, key)]:
            raise ValueError(f"{set_keys[0]} is a way to train an adapter; train: full has none")
        return self

    @model_validator(mode="after")
    def served_as_the_server_can(self) -> Self:
        if self.use_dora and self.export == "adapter":
            raise ValueError("use_dora needs export: merged, because vLLM refuses DoRA adapters")
        return self

    @model_validator(mode="after")
    def fp8_is_served_as_it_was_trained(self) -> Self:
        if self.quantization != "fp8":
            return self
        if self.use_dora:
            raise ValueError(
                "use_dora needs quantization: nf4 or none, because it reads weights whole"
            )
        if self.export != "adapter":
            raise ValueError(
                "quantization: fp8 needs export: adapter, because merged weights would be rounded "
                "anew"
            )
        if self.serve_dtype != "bfloat16":
            raise ValueError(
                "quantization: fp8 needs serve_dtype: bfloat16, the type of its products"
            )
        return self

    @model_validator(mode="after")
    def measures_what_it_limits(self) -> Self:
        check_names([metric_name(entry) for entry in self.metrics])
        check_metrics(self.gate, self.metrics)
        for name in self.gate.limits:
            if (needed := OF_A_FORMAT.get(name, self.answer_format)) != self.answer_format:
                raise ValueError(
                    f"gate.limits: {name!r} is measured with answer_format: {needed} alone; with "
                    f"{self.answer_format} the gate would reject every candidate"
                )
        return self

    @model_validator(mode="after")
    def pixels_belong_to_vision(self) -> Self:
        limits = (self.min_pixels, self.max_pixels)
        if self.modality == "text":
            if limits != (None, None) or self.trains_vision or not self.tune.language:
                raise ValueError(
                    "min_pixels, max_pixels, merger_learning_rate, tower_learning_rate and tune "
                    "need modality: vision"
                )
        elif self.min_pixels is None or self.max_pixels is None:
            raise ValueError("modality: vision needs min_pixels and max_pixels")
        elif self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self
