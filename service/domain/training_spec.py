"""The training and the resources that all trials of a study share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from .ranges import STRICT
from .shape import Shape
from .vocabulary import (
    BatchSize,
    Epochs,
    LoraPlusRatio,
    MaxGradNorm,
    Name,
    Optimizer,
    Schedule,
    WarmupRatio,
    WeightDecay,
)


class TrainingSpec(BaseModel):
    """The training that all trials share, but for what ``search_space`` searches.

    ``max_steps`` may end training before ``epochs`` does. Trials are evaluated after each epoch, or every
    ``eval_steps`` optimizer steps, and then write a checkpoint, unless ``checkpoint_steps`` is given.
    ``lora_plus_ratio`` is the learning rate of B over that of A (LoRA+, arXiv 2402.12354). ``batching: length``
    batches texts of similar length.
    """

    model_config = STRICT
    epochs: Epochs = 3
    max_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    eval_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    checkpoint_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    batch_size: BatchSize = 16
    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    gradient_checkpointing: bool = False
    max_length: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    packing: bool = False
    batching: Literal["random", "length"] = "random"
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = False
    quantization: Literal["none", "4bit"] = "none"
    optimizer: Optimizer = "adamw_fused"
    lora_plus_ratio: LoraPlusRatio = 1.0
    max_grad_norm: MaxGradNorm = 1.0
    warmup_ratio: WarmupRatio = 0.06
    weight_decay: WeightDecay = 0.0
    schedule: Schedule = "linear"

    @model_validator(mode="after")
    def _ratio_has_an_optimizer(self) -> TrainingSpec:
        if self.lora_plus_ratio != 1 and not self.optimizer.startswith("adamw"):
            raise ValueError(f"lora_plus_ratio is for adamw and adamw_fused, not {self.optimizer}")
        return self


class ResourcesSpec(BaseModel):
    """The resources of one running trial, all its processes together.

    With several GPUs, as many ``processes`` share every batch. ``gpus: fit`` is the share of a GPU of
    ``gpu_memory_gib`` that a trial is estimated to need. ``accelerator_type`` and ``custom`` are names of Ray
    resources.
    """

    model_config = STRICT
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=64)] | Literal["fit"] = 0.0
    gpu_memory_gib: Annotated[float, Field(gt=0, le=10_000)] | None = None
    memory_gib: Annotated[float, Field(gt=0, le=100_000)] | None = None
    accelerator_type: Name | None = None
    custom: Annotated[dict[Name, Annotated[float, Field(gt=0, le=1e9)]], Field(max_length=20)] = {}
    processes: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ResourcesSpec:
        if self.gpus == "fit":
            if self.gpu_memory_gib is None:
                raise ValueError("gpus: fit needs gpu_memory_gib, the memory of one GPU")
            if self.processes not in (None, 1):
                raise ValueError("gpus: fit takes a share of one GPU; several processes need whole GPUs")
        elif self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus above 1 must be a whole number; got {self.gpus:g}")
        elif self.gpus > 0 and self.processes is not None and self.processes != max(1, self.gpus):
            raise ValueError(
                f"{self.gpus:g} GPUs need {max(1, int(self.gpus))} processes, one per GPU; got {self.processes}"
            )
        return self

    @property
    def shape(self) -> Shape:
        """These resources as scheduling compares them."""
        gpus = 1.0 if self.gpus == "fit" else self.gpus
        return Shape(
            cpus=self.cpus,
            gpus=gpus,
            memory_gib=self.memory_gib or 0.0,
            accelerator_type=self.accelerator_type or "",
            custom=tuple(sorted(self.custom.items())),
            processes=self.processes or max(1, int(gpus)),
        )
