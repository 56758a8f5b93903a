"""What a model can do, as far as it is known, and what a request needs of one. Nothing known counts as able."""

from dataclasses import dataclass

__all__ = ["ModelCapabilities", "Needs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapabilities:
    """What a model can do; None: not known. `context_tokens`: longest input (and output) it takes."""

    context_tokens: int | None = None
    vision: bool | None = None
    tools: bool | None = None
    structured_output: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a request needs of a model. `input_tokens` as expected."""

    input_tokens: int = 0
    vision: bool = False
    tools: bool = False
    structured_output: bool = False
