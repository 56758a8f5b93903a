"""Arguments of public methods, checked by their annotations before anything is done: what is wrong is named."""

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["checking"]

ITEMS_MAX = 10_000
"""Of a collection, so many items are looked at."""
C = TypeVar("C", bound=type)
_WORDS: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "None",
}  # fmt: skip


def checking(*methods: str) -> Callable[[C], C]:
    """A class whose methods of these names refuse arguments of other kinds than they are annotated with.

    They raise InvalidRequestError naming the argument, at the call itself. Not for what runs at every request.
    """

    def checked(cls: C) -> C:
        for name in methods:
            setattr(cls, name, _checked(getattr(cls, name)))
        return cls

    return checked


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    hints = {
        name: one.annotation
        for name, one in signature.parameters.items()
        if name != "self" and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }

    @functools.wraps(method)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            return method(*args, **options)  # in Python's own words
        for name, hint in hints.items():
            if name in given and not _fits(given[name], hint):
                what = "text that is no valid Unicode" if isinstance(given[name], str) else type(given[name]).__name__
                raise InvalidRequestError(f"must be {_words(hint)}, not {what}", field=name)
        return method(*args, **options)

    return checked


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a kind. What cannot be told at run time is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is None:
        return value is None
    if hint is str:
        return isinstance(value, str) and _is_unicode(value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if origin is Literal:
        return value in inner
    kind = origin or hint
    if not isinstance(kind, type) or hint is Any:
        return True
    if not _is_instance(value, kind):
        return False
    if issubclass(kind, Mapping) and isinstance(value, Mapping) and len(inner) == 2:
        return all(_fits(name, inner[0]) for name in list(value)[:ITEMS_MAX])
    if issubclass(kind, Collection) and isinstance(value, Collection) and len(inner) == 1:
        return not isinstance(value, str | bytes) and all(_fits(one, inner[0]) for one in list(value)[:ITEMS_MAX])
    return True


def _is_instance(value: object, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked
        return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _words(hint: Any) -> str:
    """A kind as people say it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and issubclass(origin, Collection) and len(inner) == 1:
        return f"a list of {_words(inner[0])}"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', str(hint))}"
