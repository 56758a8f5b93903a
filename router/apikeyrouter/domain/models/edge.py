"""The base of the public models: pydantic, whose complaints leave as `InvalidRequestError` naming the field."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from apikeyrouter.domain.models.system_error import InvalidRequestError

_WORDS = {"missing": "is required", "extra_forbidden": "is not a known field"}


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as people write it: `messages[0].role`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def invalid(error: ValidationError, *, prefix: str = "") -> InvalidRequestError:
    """The first complaint of a pydantic error in our words: `<field>: <what is wrong>`. Never shows the input."""
    first = error.errors(include_url=False, include_input=False)[0]
    location: tuple[int | str, ...] = first["loc"]
    inner = first.get("ctx", {}).get("error")
    message = _WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    path = field_path((prefix, *location) if prefix else location)
    if isinstance(inner, InvalidRequestError):
        path, message = _joined(path, inner.field), inner.reason
    return InvalidRequestError(message, field=path)


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


class EdgeModel(BaseModel):
    """A public model. Unknown fields are refused; errors are `InvalidRequestError` and never show the input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as exc:
            raise invalid(exc) from exc

    @classmethod
    def parse(cls, value: Self | Mapping[str, Any]) -> Self:
        """`value` itself when it is one already, else one made of the mapping.

        Errors: `InvalidRequestError` that names the field, also when `value` is neither.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise InvalidRequestError(
                f"must be a {cls.__name__} or a mapping with its fields, not {type(value).__name__}"
            )
        return cls(**value)
