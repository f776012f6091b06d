"""The method's member of PEFT's enum of methods.

PEFT 0.21 looks methods up by ``PeftType`` member, and ``register_peft_method`` accepts only names of existing
members. So a real member is added to the enum first; it pickles, compares and looks up like PEFT's own.
"""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType

MEMBER = "CDKA"


def cdka_peft_type() -> Any:
    """The ``PeftType.CDKA`` member, added to the enum on the first call."""
    if MEMBER not in PeftType.__members__:
        member = str.__new__(PeftType, MEMBER)
        member._name_ = MEMBER
        member._value_ = MEMBER
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
        PeftType._member_names_.append(MEMBER)
        PeftType._member_map_[MEMBER] = member
        PeftType._value2member_map_[MEMBER] = member
        type.__setattr__(PeftType, MEMBER, member)
    return PeftType[MEMBER]
