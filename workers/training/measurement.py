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
    """Rank the configurations in a measurement's params, best first; then those of each group. Restores the model.

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
    batches = list(_batches(trial, prepared, device))
    model.eval()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=study.training.precision == "bf16")

    def loss(model: Any, batch: Any) -> torch.Tensor:
        with autocast:
            found: torch.Tensor = model(**batch).loss
        return found

    shapes = [cdka.ModuleShape(layer.name, layer.d_in, layer.d_out) for layer in trial.layers]
    found = []
    for group, asked in ((None, trial.params), *trial.params.get("groups", {}).items()):
        names = {layer.name for layer in trial.layers if group in (None, layer.group)}
        mine = [shape for shape in shapes if shape.name in names]
        candidates = [
            cdka.Configuration(r1, r2, r, cdka.count_parameters(mine, r1, r2, r)) for r1, r2, r in asked["candidates"]
        ]
        spectra = cdka.collect_spectra(model, batches, mine, candidates, loss, seed=trial.seed)
        ranked = cdka.predict(mine, asked["max_parameters"], "measured", candidates=candidates, spectra=spectra)
        told = f" for {group}" if group else ""
        _log.info("%d batches measured; best%s: %s", len(batches), told, ranked[0].configuration)
        found += [_entry(p, group) for p in ranked]
    return found


def _entry(p: cdka.Prediction, group: str | None) -> MeasuredIn:
    c = p.configuration
    return MeasuredIn(r1=c.r1, r2=c.r2, r=c.r, score=float(p.score), reason=p.reason, group=group)


def _batches(trial: LeasedTrial, prepared: Prepared, device: torch.device) -> Iterator[dict[str, Any]]:
    size = trial.study.training.batch_size
    wanted = min(trial.params["batches"] * size, len(prepared.train))
    order = torch.randperm(len(prepared.train), generator=torch.Generator().manual_seed(trial.seed))[:wanted].tolist()
    for start in range(0, wanted, size):
        rows = [prepared.train[k] for k in order[start : start + size]]
        yield {name: value.to(device) for name, value in prepared.collator(rows).items()}
