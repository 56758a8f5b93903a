"""Answers held against the description that the service publishes."""

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

__all__ = ["Description"]

MANAGEMENT, DATA_PLANE = "management", "data plane"
_OURS = ("x-akr-", "x-ratelimit-", "x-should-retry", "x-request-id", "retry-after", "request-id", "openai-")
"""Headers that are never sent without being described."""


class Description:
    """An OpenAPI document. `seen`: the (method, path, status) of the answers that were held against it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.seen: set[tuple[str, str, str]] = set()
        order = sorted(document["paths"], key=lambda path: (path.count("{"), -len(path)))
        self._paths = [(_pattern(path), path) for path in order]
        self._validators: dict[str, Draft202012Validator] = {}

    async def check(self, answer: httpx.Response) -> None:
        """An event hook for httpx. Raises AssertionError where an answer is not as it is described.

        Streams of events are left to `check_events`: they may have no end.
        """
        path, operation = self._operation(answer)
        if operation is None:
            return
        place = (answer.request.method, path, str(answer.status_code))
        self.seen.add(place)
        described = self._described(operation, answer)
        assert described is not None, f"{place} is not described"
        if DATA_PLANE in operation["tags"]:
            self._check_headers(place, described.get("headers", {}), answer.headers)
        kind, content = _kind(answer), described.get("content", {})
        if kind == "text/event-stream":
            assert kind in content, f"{place}: {kind} is not described"
            return
        await answer.aread()
        if not answer.content and not content:
            return
        assert kind in content or "*/*" in content, f"{place}: {kind} is not described"
        if kind == "application/json":
            self._check_value(place, content[kind]["schema"], answer.json())

    def check_events(self, answer: httpx.Response, data: Iterable[str]) -> None:
        """The data of the events of a stream. Raises AssertionError where one is not as it is described."""
        path, operation = self._operation(answer)
        assert operation is not None, path
        event = operation["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
        *ends, described = event["properties"]["data"].get("anyOf", [event["properties"]["data"]])
        for one in data:
            if {"const": one} not in ends:
                self._check_value((path,), described["contentSchema"], json.loads(one))

    def routes(self, tag: str = MANAGEMENT) -> set[tuple[str, str]]:
        """Every (method, path) of a plane."""
        return {
            (method.upper(), path)
            for path, operations in self._document["paths"].items()
            for method, operation in operations.items()
            if tag in operation.get("tags", ())
        }

    def _operation(self, answer: httpx.Response) -> tuple[str, dict[str, Any] | None]:
        path, method = answer.request.url.path, answer.request.method.lower()
        name = next((name for pattern, name in self._paths if pattern.fullmatch(path)), None)
        if name is None:
            return path, None
        operation = self._document["paths"][name].get(method, {})
        tags = operation.get("tags", ())
        return name, operation if MANAGEMENT in tags or DATA_PLANE in tags else None

    def _described(self, operation: dict[str, Any], answer: httpx.Response) -> dict[str, Any] | None:
        status, told = str(answer.status_code), operation["responses"]
        found = told.get(status) or told.get(f"{status[0]}XX")
        return None if found is None else self._resolved(found)

    def _check_headers(self, place: tuple[str, ...], described: dict[str, Any], headers: httpx.Headers) -> None:
        for name in headers:
            assert not name.startswith(_OURS) or name in described, f"{place}: the header {name} is not described"
        for name, told in described.items():
            told = self._resolved(told)
            if name in headers:
                self._check_value((*place, name), told["schema"], headers[name])
            else:
                assert not told["required"], f"{place}: there is no {name}"

    def _check_value(self, place: tuple[str, ...], schema: dict[str, Any], value: Any) -> None:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[key] = Draft202012Validator(whole)
        errors = [error.message for error in self._validators[key].iter_errors(value)]
        assert errors == [], (place, errors)

    def _resolved(self, told: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in told:
            return told
        found: Any = self._document
        for step in told["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        resolved: dict[str, Any] = found
        return resolved


def _kind(answer: httpx.Response) -> str:
    kind: str = answer.headers.get("content-type", "").partition(";")[0]
    return kind


def _pattern(path: str) -> re.Pattern[str]:
    long = {"budget_id", "lane_id", "model"}
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(re.escape(part) if n % 2 == 0 else ".+" if part in long else "[^/]+" for n, part in enumerate(parts))
    )
