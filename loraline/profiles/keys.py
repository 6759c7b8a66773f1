"""The keys of a profile in groups, each with the rules that concern no other group."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from loraline.profiles.limits import Strict
from loraline.profiles.preparation import Prepare, Split

SeparateProjection = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]
Projection = Literal[SeparateProjection, "qkv_proj", "gate_up_proj"]
"""Linear layers of a decoder layer; the last two are Phi's, which joins the others."""


class Tune(Strict):
    """Parts of a vision model that learn; a part that is null learns if it has its own rate."""

    vision: bool | None = None
    """The vision tower: its blocks, or with `train: full` all of it but the mergers."""

    merger: bool | None = None
    """The mergers (the projector) between the tower and the language model."""

    language: bool = True
    """The language model."""


class Identity(Strict):
    """Which base becomes which registered model."""

    base: str = Field("mistralai/Mistral-7B-v0.1", pattern=r"^[^\-\x00-\x1f][^\x00-\x1f]*$")
    """Base model: a hub ID, or a folder relative to the repository's root."""

    base_revision: str | None = None
    """Hub commit, tag or branch of the base; null is the hub's default branch."""

    modality: Literal["text", "vision"] = "text"
    """What a row holds: text alone, or text with images and videos."""

    registered_model: str = Field("mistral-7b-lora", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name in the model registry, and in the experiment's run names."""

    @model_validator(mode="after")
    def named_like_no_lock(self) -> Self:
        if self.registered_model.endswith(".lock"):
            raise ValueError(
                f"registered_model {self.registered_model!r} is refused: names that end with .lock "
                "are those of the registry's locks"
            )
        return self


class Data(Strict):
    """What is read, and how its answers are compared."""

    data: str | None = None
    """Folder that prepare_data reads when no --data is given."""

    prepare: Prepare = Prepare()
    """Sources and their columns, checks, limits, grouping and prompt, for prepare_data."""

    split: Split = Split()
    """Shares of the rows that are held out for validation and for the test."""

    answer_format: Literal["prose", "latex", "json", "boxes"] = "prose"
    """How answers are canonicalised and compared: JSON also by field, boxes also by overlap."""


class Trainable(Strict):
    """What learns: an adapter with its sizes and places, or the whole base."""

    train: Literal["lora", "full"] = "lora"
    """What learns: an adapter beside the frozen base, or the base's own weights. LoRA's keys say
    nothing under `full`."""

    r: Annotated[int, Field(ge=1, le=512)] | None = None
    """LoRA rank, required for an adapter; 512 is the largest that vLLM serves."""

    lora_alpha: PositiveInt | None = None
    """LoRA scaling numerator, required as `r`: the update is scaled by lora_alpha / r."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (rsLoRA, arXiv 2312.03732); vLLM serves both."""

    use_dora: bool = False
    """Learn each output's magnitude apart from its direction (DoRA, arXiv 2402.09353)."""

    init_lora_weights: Literal["pissa", "pissa_niter_16"] | None = None
    """Train the base's principal components (PiSSA, arXiv 2404.02948), found exactly or, much
    faster, by 16 iterations; null begins with an adapter that does nothing."""

    quantization: Literal["nf4", "fp8", "none"] = "nf4"
    """Precision of the frozen base in training: 4-bit NF4, 8-bit FP8, or 16-bit as it is. In FP8
    it is measured and served, too."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the LoRA matrices."""

    target_modules: Annotated[tuple[Projection, ...], Field(min_length=1)] | None = None
    """Projections of the language model that get an adapter; required where it learns. Of a Phi,
    `qkv_proj` stands for the first three and `gate_up_proj` for gate and up."""

    tune: Tune = Tune()
    """Which parts of a vision model learn; by itself the language model alone."""

    merger_learning_rate: PositiveFloat | None = None
    """Also train the vision merger (the projector), at this learning rate; null leaves it alone,
    or, under `tune.merger: true`, trains it at `learning_rate`."""

    tower_learning_rate: PositiveFloat | None = None
    """Also train the vision tower, at this learning rate; null as for the merger."""

    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354, which proposes 16); null is 1."""

    @property
    def rank(self) -> int:
        """Rank of what is trained; 0 without an adapter."""
        return 0 if self.train == "full" else self.r or 0

    @property
    def trains_merger(self) -> bool:
        if self.tune.merger is None:
            return self.merger_learning_rate is not None
        return self.tune.merger

    @property
    def trains_tower(self) -> bool:
        if self.tune.vision is None:
            return self.tower_learning_rate is not None
        return self.tune.vision

    @property
    def trains_vision(self) -> bool:
        """Whether the vision tower or its merger learns."""
        return self.trains_merger or self.trains_tower

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Projections of the language model that get an adapter; none where it does not learn."""
        adapted = self.train == "lora" and self.tune.language
        return (self.target_modules or ()) if adapted else ()

    @property
    def rank_factor(self) -> int:
        """Rank of the logged adapter over the rank that is trained: PiSSA's is twice as high."""
        return 2 if self.init_lora_weights else 1

    @model_validator(mode="after")
    def an_adapter_has_its_sizes(self) -> Self:
        for key in ("r", "lora_alpha") if self.train == "lora" else ():
            if getattr(self, key) is None:
                if key in self.model_fields_set:
                    raise ValueError(f"{key}: None is refused, an adapter needs a whole number")
                raise ValueError(f"key {key!r} is missing")
        return self

    @model_validator(mode="after")
    def pissa_splits_whole_weights(self) -> Self:
        if self.init_lora_weights is None:
            return self
        if self.quantization != "none":
            raise ValueError(
                "init_lora_weights needs quantization: none, because components are taken out of "
                "the weights, and the rest cannot be quantized without changing the sum"
            )
        if self.use_dora or self.use_rslora:
            raise ValueError(
                "init_lora_weights ends as a plain LoRA; leave use_dora and use_rslora out"
            )
        if 2 * self.rank > 512:
            raise ValueError(
                f"init_lora_weights doubles the rank, and vLLM serves up to 512: r is {self.r}"
            )
        return self

    @model_validator(mode="after")
    def something_learns(self) -> Self:
        adapted = self.train == "lora" and self.tune.language
        if adapted and self.target_modules is None:
            raise ValueError("key 'target_modules' is missing")
        if not (self.tune.language or self.trains_vision):
            raise ValueError(
                "tune leaves nothing to learn: language is false, and so are vision and merger; "
                "set one of them to true"
            )
        for part, key in (("merger", "merger_learning_rate"), ("vision", "tower_learning_rate")):
            if getattr(self.tune, part) is False and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is a rate for what tune.{part}: false leaves alone; leave one of them "
                    "out"
                )
        return self


class Optimization(Strict):
    """How it learns: rates, steps and epochs."""

    neftune_noise_alpha: PositiveFloat | None = None
    """Noise on the embeddings in training (NEFTune, arXiv 2310.05914, which tries 5 to 15)."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""

    warmup_steps: NonNegativeInt = 20
    """Optimizer steps of linear warm-up."""

    num_train_epochs: PositiveFloat = 1
    """Passes over the training rows."""

    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""

    early_stopping_patience: PositiveInt | None = None
    """Stop after this many epochs without a lower validation loss; null trains to the end."""

    rows_per_step: PositiveInt = 16
    """Rows an optimizer step learns from, on all GPUs together."""

    memory: Literal["auto", "fast", "small"] = "auto"
    """`fast` spends memory on speed, `small` speed on memory; `auto` is the fastest that fits."""


class Serving(Strict):
    """Sizes of rows, answers and images, and the form in which the model is measured and served."""

    max_length: Annotated[int, Field(ge=16)] = 1024
    """Longest row in tokens, image and answer included; longer rows are dropped, never cut."""

    max_new_tokens: PositiveInt = 256
    """Longest answer in tokens, in evaluation and serving."""

    min_pixels: PositiveInt | None = None
    """Smallest image in pixels after resizing; required for vision."""

    max_pixels: PositiveInt | None = None
    """Largest image in pixels after resizing; required for vision. The main memory knob."""

    export: Literal["adapter", "merged"] = "adapter"
    """What is measured and served: the adapter on its base, or the base with it merged in."""

    serve_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the base when it is evaluated and served."""
