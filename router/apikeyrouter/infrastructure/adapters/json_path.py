"""Places in JSON, written as `usage.tokens`, `results[0].score` or `$.usage.tokens`."""

import re
from typing import Any

from apikeyrouter.domain.models.system_error import ConfigurationError

__all__ = ["JsonPath"]

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class JsonPath:
    """One place. Raises ConfigurationError for a text that is none."""

    __slots__ = ("_steps", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        rest = text.removeprefix("$")
        steps = [int(found[2]) if found[2] else found[1] for found in _STEP.finditer(rest)]
        if not steps or _STEP.sub("", rest):
            raise ConfigurationError(f"{text!r} is no path; write a.b[0].c")
        self._steps: list[str | int] = steps

    def find(self, value: Any) -> Any:
        """What is there; None where nothing is."""
        for step in self._steps:
            if isinstance(step, int):
                value = value[step] if isinstance(value, list) and step < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return value

    def __repr__(self) -> str:
        return f"JsonPath({self.text!r})"
