"""Many keys as text: lines of JSON, a JSON array, or CSV. Pure: says what each row tells, or what is wrong with it."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import Field, SecretStr, ValidationError

from apikeyrouter.domain.components.key_registration import NewKey
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter_proxy.management.desk import Input

__all__ = ["CSV", "JSON", "LINES", "ROWS_MAX", "KeyRow", "Row", "read_rows"]

LINES, CSV, JSON = "application/x-ndjson", "text/csv", "application/json"
ROWS_MAX = 10_000
REASON_LENGTH_MAX = 300
_OWN = ("key_material", "provider_id", "metadata")
_LISTS, _VALUES = frozenset({"models"}), frozenset({"weight", "cost_per_1k", "quality", "limits"})
"""Metadata that is a list of names, and that is a number or JSON; all else that stands in a cell is text."""
_BETWEEN = re.compile(r"[;|\s]+")


class KeyRow(Input):
    """A key among many. `provider_id` may be told for all of them; a known key without `metadata` keeps what it has."""

    key_material: SecretStr
    provider_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. `line`: where it begins, counted from 1; in an array, which one it is. `refused`: why it is none."""

    line: int
    key: NewKey | None = None
    refused: str = ""


def read_rows(text: str, kind: str, *, provider_id: str | None) -> list[Row]:
    """Every row of a text of this content type. `provider_id`: whose keys those are that do not say so.

    Errors: InvalidRequestError, when it cannot be read as rows at all, or has more than ROWS_MAX.
    """
    reader = {LINES: _of_lines, JSON: _of_array, CSV: _of_csv}.get(kind)
    if reader is None:
        raise InvalidRequestError(f"must be {LINES}, {CSV} or {JSON}", field="content-type")
    rows: list[Row] = []
    for line, told in reader(text):
        if len(rows) >= ROWS_MAX:
            raise InvalidRequestError(f"has more than {ROWS_MAX} rows; send the rest by itself", field="body")
        rows.append(_row(line, told, provider_id))
    return rows


def _row(line: int, told: object, provider_id: str | None) -> Row:
    if isinstance(told, ValueError):
        return Row(line=line, refused=str(told)[:REASON_LENGTH_MAX])
    if not isinstance(told, dict):
        return Row(line=line, refused="must be an object with key_material, provider_id and metadata")
    try:
        read = KeyRow.model_validate(told)
    except ValidationError as exc:
        return Row(line=line, refused=_complaint(exc))
    provider = read.provider_id or provider_id
    if provider is None:
        return Row(line=line, refused="provider_id: is required, in the row or for all of them")
    material = read.key_material.get_secret_value()
    return Row(line=line, key=NewKey(material=material, provider_id=provider, metadata=read.metadata))


def _complaint(exc: ValidationError) -> str:
    """Which fields, and what is wrong with them; never what was sent."""
    told = exc.errors(include_url=False, include_input=False, include_context=False)
    text = "; ".join(f"{'.'.join(str(part)[:64] for part in one['loc'])}: {one['msg']}" for one in told)
    return text[:REASON_LENGTH_MAX]


def _of_lines(text: str) -> Iterator[tuple[int, object]]:
    for line, one in enumerate(text.split("\n"), start=1):
        if one.strip():
            yield line, _json(one)


def _of_array(text: str) -> Iterator[tuple[int, object]]:
    told = _json(text)
    if not isinstance(told, list):
        raise InvalidRequestError("must be a JSON array of keys", field="body")
    yield from enumerate(told, start=1)


def _of_csv(text: str) -> Iterator[tuple[int, object]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if "key_material" not in header or not all(header) or len({*header}) < len(header):
            raise InvalidRequestError(
                "must begin with a line of different names: key_material, provider_id, and of metadata", field="body"
            )
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, _of_cells(header, cells)
            line = reader.line_num + 1
    except csv.Error as exc:
        raise InvalidRequestError(f"is no CSV at line {reader.line_num}: {exc}", field="body") from exc


def _of_cells(header: list[str], cells: list[str]) -> object:
    if len(cells) != len(header):
        return ValueError(f"has {len(cells)} cells, the first line has {len(header)}")
    told = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    own: dict[str, Any] = {name: told.pop(name) for name in _OWN if name in told}
    if "metadata" in own:
        own["metadata"] = _json(own["metadata"])
        if isinstance(own["metadata"], ValueError):
            return ValueError(f"metadata: {own['metadata']}")
    if told and isinstance(own.get("metadata", {}), dict):
        own["metadata"] = {**own.get("metadata", {}), **_metadata(told)}
    return own


def _metadata(told: Mapping[str, str]) -> dict[str, Any]:
    def value(name: str, cell: str) -> Any:
        if name in _LISTS:
            return _BETWEEN.split(cell.strip(";| "))
        read = _json(cell) if name in _VALUES else cell
        return cell if isinstance(read, ValueError) else read

    return {name: value(name, cell) for name, cell in told.items()}


def _json(text: str) -> object:
    """What a JSON text says, or the error. What is no number is refused."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        where = f" at column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else ""
        return ValueError(f"is no JSON{where}")
