"""Environment variables: what is ours, and what a `.env` file adds to it."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apikeyrouter.domain.models.system_error import ConfigurationError

__all__ = ["PREFIX", "ProviderKey", "environment", "provider_keys", "refuse_unknown"]

PREFIX = "APIKEYROUTER_"
PROVIDER_KEYS_MAX = 1000
"""Highest number looked for in `OPENAI_KEY_<n>`."""
_PROVIDER_KEY = re.compile(r"(OPENAI|ANTHROPIC)_(?:API_KEY|KEY_([1-9][0-9]{0,3}))")


def environment(dotenv: str | Path | None = ".env") -> dict[str, str]:
    """The process's environment over what the `.env` file says; without a file, the environment alone.

    For the service and the command line; the library itself reads no file. Errors: ConfigurationError when the file
    exists and cannot be read.
    """
    path = Path(dotenv) if dotenv is not None else None
    if path is None or not path.is_file():
        return dict(os.environ)
    from dotenv import dotenv_values

    try:
        told = dotenv_values(path, interpolate=False)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc}") from exc
    return {name: value for name, value in told.items() if value is not None} | dict(os.environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """A provider's key found in the environment. `variable` is where."""

    provider_id: str
    variable: str
    material: str = field(repr=False)


def provider_keys(environ: Mapping[str, str]) -> list[ProviderKey]:
    """`OPENAI_API_KEY`, `OPENAI_KEY_1` … `OPENAI_KEY_1000` and the same of Anthropic, each material once, in order."""
    found: dict[tuple[str, str], ProviderKey] = {}
    for variable in sorted(environ, key=_in_order):
        match = _PROVIDER_KEY.fullmatch(variable)
        material = environ[variable].strip()
        if match is None or not material or int(match[2] or 0) > PROVIDER_KEYS_MAX:
            continue
        provider_id = match[1].lower()
        found.setdefault(
            (provider_id, material), ProviderKey(provider_id=provider_id, variable=variable, material=material)
        )
    return list(found.values())


def _in_order(variable: str) -> tuple[str, int]:
    head, _, number = variable.rpartition("_")
    return (head, int(number)) if number.isdigit() else (variable, 0)


def refuse_unknown(environ: Mapping[str, str], known: Iterable[str]) -> None:
    """Errors: ConfigurationError for each `APIKEYROUTER_*` variable that is not known, with the nearest known name."""
    names = {PREFIX + name.upper() for name in known}
    strangers = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in names)
    if strangers:
        raise ConfigurationError(errors=[_unknown(name, names) for name in strangers])


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.upper(), list(known), n=1)
    return f"{name}: is not a known setting" + (f"; did you mean {near[0]}?" if near else "")
