"""The measurement of the ``measured`` predictor: gradients of full fine-tuning on a few batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers import set_seed

import cdka
from service.schemas.leases import LeasedTrial, MeasuredIn

from ..inputs.base_models import WarmModel
from ..tasks.task import Prepared

_log = logging.getLogger(__name__)


def measure(trial: LeasedTrial, warm: WarmModel, prepared: Prepared) -> list[MeasuredIn]:
    """Rank the configurations in a measurement's params, best first. Restores the model.

    The study's seed draws the batches from the training split and initialises the head.

    Raises:
        cdka.CdkaError: a gradient is not finite, or the model has other layers than the study was planned with.
    """
    study = trial.study
    model = warm.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not getattr(model, "is_quantized", False):
        model.to(device)
    set_seed(trial.seed)
    warm.draw_heads()
    shapes = [cdka.ModuleShape(layer.name, layer.d_in, layer.d_out) for layer in trial.layers]
    candidates = [
        cdka.Configuration(r1, r2, r, cdka.count_parameters(shapes, r1, r2, r))
        for r1, r2, r in trial.params["candidates"]
    ]
    batches = list(_batches(trial, prepared, device))
    model.eval()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=study.training.precision == "bf16")

    def loss(model: Any, batch: Any) -> torch.Tensor:
        with autocast:
            found: torch.Tensor = model(**batch).loss
        return found

    spectra = cdka.collect_spectra(model, batches, shapes, candidates, loss, seed=trial.seed)
    ranked = cdka.predict(shapes, trial.params["max_parameters"], "measured", candidates=candidates, spectra=spectra)
    _log.info("%d batches measured; best: %s", len(batches), ranked[0].configuration)
    return [
        MeasuredIn(
            r1=p.configuration.r1, r2=p.configuration.r2, r=p.configuration.r, score=float(p.score), reason=p.reason
        )
        for p in ranked
    ]


def _batches(trial: LeasedTrial, prepared: Prepared, device: torch.device) -> Iterator[dict[str, Any]]:
    size = trial.study.training.batch_size
    wanted = min(trial.params["batches"] * size, len(prepared.train))
    order = torch.randperm(len(prepared.train), generator=torch.Generator().manual_seed(trial.seed))[:wanted].tolist()
    for start in range(0, wanted, size):
        rows = [prepared.train[k] for k in order[start : start + size]]
        yield {name: value.to(device) for name, value in prepared.collator(rows).items()}
