"""What a study's trials were trained on: recorded by the first trial that makes a step, and the same for all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SplitName = Literal["train", "validation", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
# Characters of a hash that messages and pages show.
_SHOWN = 12
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class InputFile(BaseModel):
    """A file, or a folder as a whole, under the name that the study gives it."""

    model_config = _FROZEN
    name: Annotated[str, Field(max_length=4096)]
    sha256: Sha256
    bytes: Count


class InputSplit(BaseModel):
    """A split: rows in its source, rows dropped as bad, examples used, and where they come from."""

    model_config = _FROZEN
    read: Count
    dropped: Count
    used: Count
    origin: Annotated[str, Field(max_length=20_000)]
    files: Annotated[tuple[InputFile, ...], Field(max_length=1000)] = ()


class Inputs(BaseModel):
    """Data and base model of a study, by content.

    ``model_sha256`` is :func:`cdka.weights_digest`. ``tokenizer_sha256`` covers vocabulary, special tokens and chat
    template. ``notes`` say what the first trial found, such as a head that was drawn anew.
    """

    model_config = _FROZEN
    splits: dict[SplitName, InputSplit]
    classes: Annotated[tuple[Annotated[str, Field(max_length=10_000)], ...], Field(max_length=100_000)] | None = Field(
        default=None, description="The classes in the order of the model's outputs."
    )
    model_sha256: Sha256 | None = None
    tokenizer_sha256: Sha256 | None = None
    notes: Annotated[tuple[Annotated[str, Field(max_length=20_000)], ...], Field(max_length=100)] = ()

    def differences(self, now: Inputs) -> list[str]:
        """How ``now`` differs from these in what trials depend on; empty if it does not."""
        found = []
        for name, split in self.splits.items():
            other = now.splits.get(name)
            if other is None:
                found.append(f"there is no {name} split any more")
                continue
            files = {file.name: file for file in other.files}
            for file in split.files:
                changed = files.get(file.name)
                if changed is not None and changed.sha256 != file.sha256:
                    found.append(f"{file.name} has SHA-256 {_short(changed.sha256)}, it had {_short(file.sha256)}")
            counts = [(split.read, other.read), (split.dropped, other.dropped), (split.used, other.used)]
            if any(before != after for before, after in counts):
                said = [f"{s.read} rows read, {s.dropped} dropped, {s.used} used" for s in (other, split)]
                found.append(f"{name} has {said[0]}; it had {said[1]}")
        if self.classes != now.classes:
            found.append("the classes or their order differ")
        if self.model_sha256 != now.model_sha256:
            found.append(
                f"the base model's weights have SHA-256 {_short(now.model_sha256)}, they had "
                f"{_short(self.model_sha256)}"
            )
        if self.tokenizer_sha256 != now.tokenizer_sha256:
            found.append("the tokenizer differs")
        return list(dict.fromkeys(found))


def changes_told(differences: list[str]) -> str:
    """What is wrong with a trial whose inputs differ from those that its study began with."""
    return (
        f"data or base model have changed since the study began: {'; '.join(differences)}. "
        "Restore them, or create a new study"
    )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:_SHOWN]
