"""Read base models by their configuration: shapes and parameter counts, never weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import AutoConfig, PretrainedConfig

import cdka

from ..domain.study_spec import ModelSpec
from ..errors import Fault, InvalidRequest
from ..paths import gguf_file, locate


@dataclass(frozen=True, slots=True)
class MetaModel:
    """A base model without weights: its configuration and its modules on the meta device."""

    config: PretrainedConfig
    module: nn.Module

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def positions(self) -> int | None:
        """The most tokens that it takes, if it is limited."""
        found = getattr(self.config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None


def read_model(model: ModelSpec, kind: str | None, roots: Sequence[Path]) -> MetaModel | Fault:
    """The model of a study for a kind of task, or the fault that prevents reading it."""
    try:
        where = locate(model.path, roots)
        file = gguf_file(where)
        form = {} if file is None else {"gguf_file": file}
        config = AutoConfig.from_pretrained(where, revision=model.revision, trust_remote_code=False, **form)
        return MetaModel(config, cdka.meta_model(config, kind))
    except InvalidRequest as error:
        return Fault("#/model/path", error.detail)
    except cdka.CdkaError as error:
        return Fault("#/model/path", str(error))
    except Exception as error:  # transformers may raise anything for a config of a user
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Fault("#/model/path", f"no model can be read from {model.path!r}: {reason}")
