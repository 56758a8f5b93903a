"""The base of the public models: pydantic, whose complaints leave as `InvalidRequestError` naming the field."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from apikeyrouter.domain.models.system_error import InvalidRequestError

_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} character(s)",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} item(s)",
}


_QUOTED = re.compile(r"'[^']*'")
_KINDS = frozenset({"str", "int", "float", "bool", "Decimal"})


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as people write it: `messages[0].role`."""
    path = ""
    for part in location:
        if isinstance(part, str) and (part in _KINDS or "[" in part or part.startswith("constrained-")):
            continue  # pydantic's own name for one of the types that a field may have
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def complaints(error: ValidationError, *, prefix: str = "") -> list[tuple[str, str]]:
    """Every complaint of a pydantic error as (path, what is wrong), in our words. Never shows the input."""
    return [_complaint(dict(detail), prefix) for detail in error.errors(include_url=False, include_input=False)]


def invalid(error: ValidationError, *, prefix: str = "", unknown: str = "") -> InvalidRequestError:
    """The first complaint of a pydantic error: `<field>: <what is wrong>`. `unknown`: where unknown fields belong."""
    path, reason = complaints(error, prefix=prefix)[0]
    if reason == _WORDS["extra_forbidden"] and "." not in path:
        reason += unknown
    return InvalidRequestError(reason, field=path)


def _complaint(detail: dict[str, Any], prefix: str) -> tuple[str, str]:
    location: tuple[int | str, ...] = detail["loc"]
    path = field_path((prefix, *location) if prefix else location)
    context: dict[str, Any] = detail.get("ctx", {})
    inner = context.get("error")
    if isinstance(inner, InvalidRequestError):
        return _joined(path, inner.field), inner.reason
    words = _WORDS.get(detail["type"])
    if "expected" in context:  # names that mean the same are told once
        context["expected"] = ", ".join(dict.fromkeys(_QUOTED.findall(str(context["expected"])))) or context["expected"]
    return path, words.format(**context) if words else detail["msg"].removeprefix("Value error, ")


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}".replace(".[", "[") if outer and inner else outer or inner


@cache
def _blank(model: type[BaseModel]) -> tuple[dict[str, Any], list[tuple[str, Callable[[], Any]]]]:
    """Every field in its order, with its default where it has one, and those whose defaults are made each time."""
    fields = model.model_fields.items()
    factories = [(name, cast("Callable[[], Any]", field.default_factory)) for name, field in fields]
    values = {name: None if field.is_required() else field.default for name, field in fields}
    return values, [(name, factory) for name, factory in factories if factory is not None]


class EdgeModel(BaseModel):
    """A public model. Unknown fields are refused; errors are `InvalidRequestError` and never show the input."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        defer_build=True,  # a quarter of the models' import time, paid by whoever uses a model first
    )

    _unknown: ClassVar[str] = ""
    """What to tell of fields that there are not."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as exc:
            raise invalid(exc, unknown=self._unknown) from exc

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # models within models are made without it

    @classmethod
    def made(cls, **fields: Any) -> Self:
        """A model of values that are right already, because we made them: nothing is checked or converted."""
        blank, factories = _blank(cls)
        values = {**blank, **fields}
        for name, factory in factories:
            if name not in fields:
                values[name] = factory()
        found, write = cls.__new__(cls), object.__setattr__
        write(found, "__dict__", values)
        write(found, "__pydantic_fields_set__", set(fields))
        write(found, "__pydantic_extra__", None)
        write(found, "__pydantic_private__", None)
        return found

    def but(self, **fields: Any) -> Self:
        """A copy in which these fields are others; their values are right already."""
        found = self.__copy__()
        found.__dict__.update(fields)
        found.__pydantic_fields_set__.update(fields)
        return found

    @classmethod
    def parse(cls, value: Self | Mapping[str, Any]) -> Self:
        """`value` itself when it is one already, else one made of the mapping.

        Errors: `InvalidRequestError` that names the field, also when `value` is neither.
        """
        if isinstance(value, cls):
            return value
        odd = [name for name in value if not isinstance(name, str)] if isinstance(value, Mapping) else []
        if odd or not isinstance(value, Mapping):
            kind = "" if cls.__name__.startswith("_") else f"a {cls.__name__} or "
            told = f"named by text, not by {type(odd[0]).__name__}" if odd else f"not {type(value).__name__}"
            raise InvalidRequestError(f"must be {kind}a mapping with its fields, {told}")
        return cls(**value)
