"""Answers of management held against the description that the service publishes."""

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

__all__ = ["Description"]


class Description:
    """An OpenAPI document. `seen`: the (method, path, status) of the answers that were held against it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.seen: set[tuple[str, str, str]] = set()
        self._paths = [(_pattern(path), path) for path in sorted(document["paths"], key=lambda path: path.count("{"))]
        self._validators: dict[tuple[str, str, str, str], Draft202012Validator] = {}

    async def check(self, answer: httpx.Response) -> None:
        """An event hook for httpx. Raises AssertionError where an answer is not as it is described."""
        path = self._path_of(answer.request.url.path)
        if path is None:
            return
        operation = self._document["paths"][path].get(answer.request.method.lower())
        if operation is None or "management" not in operation.get("tags", ()):
            return
        place = (answer.request.method, path, str(answer.status_code))
        self.seen.add(place)
        described = operation["responses"].get(place[2])
        assert described is not None, f"{place} is not described"
        await answer.aread()
        kind = answer.headers.get("content-type", "").partition(";")[0]
        content = described.get("content", {})
        if not answer.content and not content:
            return
        assert kind in content, f"{place}: {kind} is not described"
        if kind == "application/json":
            errors = [
                error.message for error in self._validator(*place, content[kind]["schema"]).iter_errors(answer.json())
            ]
            assert errors == [], (place, errors)

    def routes(self) -> set[tuple[str, str]]:
        """Every (method, path) of management."""
        return {
            (method.upper(), path)
            for path, operations in self._document["paths"].items()
            for method, operation in operations.items()
            if "management" in operation.get("tags", ())
        }

    def _path_of(self, path: str) -> str | None:
        return next((name for pattern, name in self._paths if pattern.fullmatch(path)), None)

    def _validator(self, method: str, path: str, status: str, schema: dict[str, Any]) -> Draft202012Validator:
        key = (method, path, status, "json")
        if key not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[key] = Draft202012Validator(whole)
        return self._validators[key]


def _pattern(path: str) -> re.Pattern[str]:
    long = {"budget_id", "lane_id"}
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(re.escape(part) if n % 2 == 0 else ".+" if part in long else "[^/]+" for n, part in enumerate(parts))
    )
