"""What a runner keeps between trials: one base model, its data, and the activations of its frozen lower layers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from service.errors import ServiceError
from service.paths import link_outside, locate
from service.schemas.leases import LeasedTrial
from service.schemas.specs import Inputs, StudySpec, changes_told
from service.settings import Settings

from ..failures import Rejected
from ..inputs.base_models import WarmModel
from ..inputs.identity import Stamp, digest_of, inputs_of, model_folder, require_ids, stamp
from ..inputs.splits import SPLITS, Splits, load_splits
from ..inputs.token_cache import TokenisedCache
from ..tasks import Task
from ..tasks.task import Prepared
from ..training.activation_cache import ActivationCache, Storage, compute_activations, find_frozen_layers

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Warm:
    """One base model and its data, and the marks of the files that they were read from."""

    model_key: str = ""
    data_key: str = ""
    model: WarmModel | None = None
    prepared: Prepared | None = None
    splits: Splits | None = None
    inputs: Inputs | None = None
    paths: tuple[Path, ...] = ()
    stamp: Stamp = ()
    activations_key: str = ""
    activations: ActivationCache | None = None

    def forget(self) -> None:
        """Keep nothing."""
        empty = Warm()
        for one in fields(self):
            setattr(self, one.name, getattr(empty, one.name))

    def prepare(self, trial: LeasedTrial, task: Task, settings: Settings) -> tuple[WarmModel, Prepared]:
        """The base model and the tokenised data of a trial, kept if the last trial used the same.

        Raises:
            Rejected: they cannot be used, or are not those that the study began with.
        """
        study = trial.study
        path = _model_path(study, settings)
        training = study.training
        data_key = f"{study.model_key}\n{study.task.model_dump_json()}\n{training.max_length}\n{training.packing}"
        if self.paths and stamp(self.paths) != self.stamp:
            _log.info("data or model files have changed; they are read again")
            self.forget()
        if self.prepared is None or self.data_key != data_key:
            self.forget()
            cache = TokenisedCache(settings.home / "cache" / "tokenised", settings.cache_bytes)
            with tempfile.TemporaryDirectory(prefix="cdka-data-") as scratch:
                splits = load_splits(study.task, settings.data_roots, Path(scratch))
                prepared = task.prepare(study, path, splits, cache)
            numbers = splits.parts["train"].numbers if "train" in splits.parts else []
            prepared.rows = numbers if len(numbers) == len(prepared.train) else []
            self.prepared, self.splits, self.data_key = prepared, splits, data_key
        if self.model is None:
            self.model = task.load_model(study, path, self.prepared)
            self.model_key = study.model_key
            self._identify(study, path)
        if trial.inputs is not None and self.inputs is not None:
            differences = trial.inputs.differences(self.inputs)
            if differences:
                raise Rejected(changes_told(differences))
        return self.model, self.prepared

    def _identify(self, study: StudySpec, path: str) -> None:
        """Record what data and model are, and mark their files."""
        warm, prepared, splits = self.model, self.prepared, self.splits
        assert warm is not None
        assert prepared is not None
        assert splits is not None
        embedding = getattr(warm.model, "get_input_embeddings", lambda: None)()
        rows = getattr(embedding, "num_embeddings", None)
        if prepared.tokenizer is not None and rows is not None:
            for name in SPLITS:
                part = splits.parts.get(name)
                require_ids(name, getattr(prepared, name), part.numbers if part else [], rows, prepared.tokenizer)
        folder = model_folder(path, study.model.revision)
        files = [file for part in splits.parts.values() for file in part.paths]
        self.paths = tuple(dict.fromkeys([*files, *([folder] if folder is not None else [])]))
        self.stamp = stamp(self.paths)
        self.inputs = inputs_of(
            splits, prepared.facts.get("classes"), prepared.tokenizer, digest_of(path, study.model.revision), warm.notes
        )

    def activations_of(
        self, trial: LeasedTrial, settings: Settings, is_wanted: Callable[[], bool]
    ) -> ActivationCache | None:
        """The activations of the layers below the first adapted one, computed with the first trial."""
        assert self.model is not None
        assert self.prepared is not None
        study = trial.study
        adapted = [layer.name for layer in trial.layers]
        key = f"{self.data_key}\n{study.model_key}\n{adapted}"
        if self.activations_key == key:
            return self.activations
        self.activations_key, self.activations = key, None
        if study.training.gradient_checkpointing:
            return None
        layers = find_frozen_layers(self.model.model, adapted)
        if layers is None:
            return None
        storage = Storage(settings.home / "cache", settings.activation_bytes)
        found = compute_activations(
            self.model.model, layers, self.prepared, study.training.precision, storage, is_wanted
        )
        self.activations = found
        if not is_wanted():
            # They may be incomplete, so the next trial computes them.
            self.activations_key = ""
        return found


def _model_path(study: StudySpec, settings: Settings) -> str:
    """Where the study's model lies, or its name at the hub."""
    try:
        path = locate(study.model.path, settings.data_roots)
    except ServiceError as error:
        raise Rejected(error.detail) from error
    if Path(path).is_dir() and (link := link_outside(Path(path), settings.data_roots)):
        raise Rejected(f"the model {study.model.path!r} has a link that leads out of the data directories: {link}")
    return path
