"""What a search space gets wrong that its form does not show."""

from __future__ import annotations

from ..errors import Fault
from .search_space import OPTIONAL, SearchSpace
from .study_spec import AdapterSpec, SearchSpec
from .training_spec import TrainingSpec

# Keys that studies of earlier releases do not have.
_LATER = {"groups"}


def space_faults(
    space: SearchSpace, training: TrainingSpec | None, adapter: AdapterSpec | None, search: SearchSpec | None
) -> list[Fault]:
    """Values that a parameter cannot take, parameters fixed as well as searched, and what does not go together.

    A section is ``None`` if it has faults of its own.
    """
    faults = [Fault(f"#/search_space{place}", message) for place, message in space.value_faults()]
    for name, where in OPTIONAL.items():
        section = adapter if where == "adapter" else training
        if section is None:
            continue
        # A study that was read from the server has every key, with its default; it can be posted again.
        every = set(type(section).model_fields) - section.model_fields_set <= _LATER
        if every and getattr(section, name) == type(section).model_fields[name].default:
            continue
        if getattr(space, name) is not None and name in section.model_fields_set:
            faults.append(Fault(f"#/{where}/{name}", f"search_space names {name}, too; name it in one of the two"))
    if adapter is not None and adapter.groups is not None:
        faults += _group_faults(space, adapter)
    if training is not None and not faults:
        faults += _ratio_faults(space, training)
    if search is not None and search.pruner != "none" and space.epochs is not None and len(space.ends("epochs")) > 1:
        message = "trials of different lengths cannot be compared at one evaluation: write search.pruner: none"
        faults.append(Fault("#/search_space/epochs", message))
    return faults


def _group_faults(space: SearchSpace, adapter: AdapterSpec) -> list[Fault]:
    """What does not go together with groups of layers."""
    faults = []
    if adapter.target_modules != AdapterSpec.model_fields["target_modules"].default:
        faults.append(Fault("#/adapter/target_modules", "the groups name the modules; leave this out"))
    if space.target_modules is not None:
        message = "adapter.groups names the modules of every trial; leave this out, or the groups"
        faults.append(Fault("#/search_space/target_modules", message))
    if "cdka" not in space.methods():
        message = "groups are for CDKA, which search_space.method does not name; write target_modules"
        faults.append(Fault("#/adapter/groups", message))
    return faults


def _ratio_faults(space: SearchSpace, training: TrainingSpec) -> list[Fault]:
    """Faults of a ratio of LoRA+ beside optimizers that have none."""
    if space.optimizer is None and space.lora_plus_ratio is None:
        return []  # the section's own fault
    ratios = space.ends("lora_plus_ratio") if space.lora_plus_ratio is not None else [training.lora_plus_ratio]
    optimizers = (space.values("optimizer") if space.optimizer is not None else None) or [training.optimizer]
    without = [name for name in optimizers if not name.startswith("adamw")]
    if ratios == [1] or not without:
        return []
    place = "#/search_space/lora_plus_ratio" if space.lora_plus_ratio is not None else "#/search_space/optimizer"
    return [Fault(place, f"lora_plus_ratio is for adamw and adamw_fused, not {', '.join(without)}")]
