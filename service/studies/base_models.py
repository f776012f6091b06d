"""Read base models by their configuration and the names of their tensors, never their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_safetensors_metadata
from torch import nn
from transformers import AutoConfig, PretrainedConfig

import cdka

from ..domain.study_spec import ModelSpec
from ..errors import Fault, InvalidRequest
from ..paths import link_outside, locate


@dataclass(frozen=True, slots=True)
class MetaModel:
    """A base model without weights: its configuration, its modules on the meta device, and which of them are heads."""

    config: PretrainedConfig
    module: nn.Module
    heads: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def positions(self) -> int | None:
        """The most tokens that it takes, if it is limited.

        Models that number positions from behind the padding token, such as RoBERTa, take fewer than they have rows.
        """
        found = getattr(self.config, "max_position_embeddings", None)
        if not isinstance(found, int):
            return None
        for name, module in self.module.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                offset = module.padding_idx
                if offset is not None and module.num_embeddings == found:
                    return found - offset - 1
        return found


def read_model(model: ModelSpec, kind: str | None, roots: Sequence[Path]) -> MetaModel | Fault:
    """The model of a study for a kind of task, or the fault that prevents reading it."""
    where, file = model.path, None
    try:
        where, file = cdka.model_source(locate(model.path, roots))
        if Path(where).is_dir():
            _require_own(Path(where), model.path, roots)
        form = {} if file is None else {"gguf_file": file}
        config = AutoConfig.from_pretrained(where, revision=model.revision, trust_remote_code=False, **form)
        module: Any = cdka.meta_model(config, kind)
        return MetaModel(
            config, module, cdka.head_modules(module, kind, None if file else _tensor_names(where, model.revision))
        )
    except InvalidRequest as error:
        return Fault("#/model/path", error.detail)
    except cdka.CdkaError as error:
        return Fault("#/model/path", str(error))
    except Exception as error:  # transformers may raise anything for a config of a user
        return Fault("#/model/path", f"no model can be read from {model.path!r}: {_told(error, where, file)}")


def _require_own(folder: Path, path: str, roots: Sequence[Path]) -> None:
    """Check that a folder is a model's own, and nothing but a model's.

    Raises:
        InvalidRequest: a link leads out of the data folders, or an adapter lies in it.
    """
    if link := link_outside(folder, roots):
        raise InvalidRequest(f"the model {path!r} has a link that leads out of the data directories: {link}")
    if (folder / "adapter_config.json").exists():
        raise InvalidRequest(
            f"{path!r} holds an adapter (adapter_config.json): name its base model, or merge the adapter into it first"
        )


# Errors that say a name alone, and what they mean here.
_BARE = {KeyError: "there is no ", AttributeError: "a value has another type than expected: "}


def _told(error: Exception, where: str, file: str | None) -> str:
    """What is wrong with a config, in one line: without paths of this machine, with what a bare name means."""
    lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    for kind, words in _BARE.items():
        if isinstance(error, kind):
            said = f"{words}{said}"
    what = "its config cannot be used" if file is None else f"{file} is truncated, or no GGUF file of a known model"
    return f"{what}: {said.replace(where, 'it')}"


def _tensor_names(where: str, revision: str | None) -> frozenset[str] | None:
    """The names of a checkpoint's tensors; ``None`` if they are not known without loading it.

    Raises:
        cdka.CheckpointError: a local file is truncated or not in its format.
    """
    if Path(where).is_dir():
        return cdka.tensor_names(Path(where))
    try:
        return frozenset(get_safetensors_metadata(where, revision=revision).weight_map)
    except Exception:  # no network, or a checkpoint in another format: the runner compares its model with the plan
        return None
