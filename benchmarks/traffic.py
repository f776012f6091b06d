"""How many activations an adapter's step reads and writes, beyond the frozen layer's own.

At adapter ranks a step is bound by memory, so this traffic determines its time. Numbers are in units of ``N*d``: N
tokens times the width of a square layer. ``tests/cdka/test_traffic.py`` checks them against real operations.

- CDKA: the docstring of ``cdka/fused.py``.
- LoRA as PEFT composes it, ``result + lora_B(lora_A(x)) * scaling``, rank r. Forward: x read, y_adapter written, read
  and written by the scaling, then read and added to y, which is read and written. Backward: dy read and written by the
  scaling, read twice (for d(lora_B) and for its input), x read, dx_adapter written, read and added to dx, which is read
  and written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Numbers read and written, in units of N*d."""

    forward: float
    backward: float


def cdka_traffic(d: int, r1: int, r2: int, r: int, *, expanded: bool, bias: bool = False) -> Traffic:
    """Traffic of one CDKA layer with its frozen base layer, when all gradients are computed."""
    t = r * r1 * r2 / d
    if expanded:
        return Traffic(3 + 2 * t, 5 + 4 * t)
    return Traffic((7 if bias else 5) + 4 * t, 7 + 6 * t)


def grouped_traffic(d: int, r1: int, r2: int, r: int, layers: int) -> Traffic:
    """Traffic of each of ``layers`` layers with the same input (``cdka/groups.py``); B is expanded.

    Alone, k frozen layers write k gradients of x, which autograd sums (k - 1 times two reads and a write). A group
    writes the first, and adds the others and its adapters' in place.
    """
    t = r * r1 * r2 / d
    # T is copied out of the common product, unless its layout there is already right; dT is copied into one tensor.
    copied = 0 if r2 == 1 else 2 * t
    return Traffic(2 + 1 / layers + 2 * t + copied, 5 / layers + 6 * t)


def lora_traffic(d: int, rank: int) -> Traffic:
    """Traffic of one LoRA layer as PEFT computes it, in one precision and without dropout."""
    t = rank / d
    return Traffic(7 + 2 * t, 9 + 4 * t)
