"""The component structures in a trial's parameters: one for all adapted layers, or one for each group of layers.

One structure is ``r1``, ``r2`` and ``r``. With groups the names begin with the group's: ``attention.r1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Structure = tuple[int, int, int]
SIZES = ("r1", "r2", "r")


def by_group(params: Mapping[str, Any]) -> dict[str, Structure]:
    """The structure of each group, by name; empty if all layers have one."""
    groups = sorted(name.removesuffix(".r1") for name in params if name.endswith(".r1"))
    return {g: (params[f"{g}.r1"], params[f"{g}.r2"], params[f"{g}.r"]) for g in groups}


def of_groups(structures: Mapping[str, Structure]) -> dict[str, int]:
    """The parameters that give each group its structure."""
    return {f"{g}.{name}": size for g, sizes in structures.items() for name, size in zip(SIZES, sizes, strict=True)}


def uniform(params: Mapping[str, Any]) -> Structure | None:
    """The structure of all layers; ``None`` if groups have different ones, or the method has none."""
    # A study of 50,000 trials asks this of each, so the common case comes first.
    if "r1" in params and "r2" in params and "r" in params:
        return params["r1"], params["r2"], params["r"]
    found = set(by_group(params).values())
    return found.pop() if len(found) == 1 else None


def sizes_told(method: str, params: Mapping[str, Any]) -> str:
    """A method's sizes: structures of CDKA, KronA and LoRA, which is (1, 1, r); else its r, and LoKr's factor."""
    if method == "full":
        return "–"
    if method in ("miss", "lokr"):
        return ", ".join(f"{name} {params[name]}" for name in ("r", "factor") if name in params)
    return told(params)


def pairs_in(params: Mapping[str, Any]) -> set[tuple[int | None, int | None]]:
    """Each (r1, r2) in the parameters; of a method without sizes, ``(None, None)``."""
    return {(r1, r2) for r1, r2, _ in by_group(params).values()} or {(params.get("r1"), params.get("r2"))}


def told(params: Mapping[str, Any]) -> str:
    """The structure as it is shown: ``2, 8, 4``, or ``attention 2, 8, 4; mlp 4, 4, 6``."""
    if groups := by_group(params):
        return "; ".join(f"{g} {', '.join(map(str, sizes))}" for g, sizes in groups.items())
    return ", ".join(str(params.get(name, default)) for name, default in (("r1", 1), ("r2", 1), ("r", "?")))
