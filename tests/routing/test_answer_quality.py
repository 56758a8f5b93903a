"""Answers, judged by what can be seen: refused, empty, cut off, not in the form that was asked for."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.answer_quality import fault_of, fits, schema_asked_for
from apikeyrouter.domain.interfaces.wire import ParsedRequest

PERSON = {
    "type": "object", "required": ["name", "age"],
    "properties": {
        "name": {"type": "string"}, "age": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}}, "kind": {"const": "person"},
        "pet": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["name"]}]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told", "fault"),
    [
        ("fine", {}, ""), ("", {}, "empty"), (" \n", {}, "empty"), ("", {"calls_tools": True}, ""),
        ("", {"finish_reason": "tool_calls"}, ""), ("no", {"refusal": "I cannot"}, "refused"),
        ("half", {"finish_reason": "content_filter"}, "refused"), ("half", {"finish_reason": "length"}, "truncated"),
        ("half", {"finish_reason": "length", "capped": True}, ""), ("{}", {"schema": PERSON}, "schema"),
        ('{"name": "x", "age": null}', {"schema": PERSON}, ""), ("said in prose", {"schema": {}}, "schema"),
        ("said in prose", {"schema": {}, "calls_tools": True}, ""),
    ],
)  # fmt: skip
def test_an_answer_is_judged_by_what_can_be_seen(text: str, told: dict[str, Any], fault: str) -> None:
    plain: dict[str, Any] = {"finish_reason": "stop", "calls_tools": False, "capped": False}
    assert fault_of(text, **{**plain, **told}) == fault


@pytest.mark.parametrize(
    ("value", "whether"),
    [
        ({"name": "x", "age": 3}, True), ({"name": "x"}, False), ({"name": 5, "age": 3}, False),
        ({"name": "x", "age": True}, False), ({"name": "x", "age": 1.5}, False), ([], False), ("x", False),
        ({"name": "x", "age": 3, "tags": ["a", "b"]}, True), ({"name": "x", "age": 3, "tags": ["c"]}, False),
        ({"name": "x", "age": 3, "kind": "person"}, True), ({"name": "x", "age": 3, "kind": "dog"}, False),
        ({"name": "x", "age": 3, "pet": None}, True), ({"name": "x", "age": 3, "pet": {"name": "y"}}, True),
        ({"name": "x", "age": 3, "pet": {}}, False), ({"name": "x", "age": 3, "more": 1}, True),
    ],
)  # fmt: skip
def test_json_fits_a_schema_or_not(value: Any, whether: bool) -> None:
    assert fits(msgspec.json.encode(value).decode(), PERSON) is whether


WORDS = st.sampled_from(["type", "enum", "items", "required", "properties", "anyOf", "const", "$ref"])
ANY_SCHEMA = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner)
)


@given(st.text(), ANY_SCHEMA)
def test_no_text_and_no_schema_raises(text: str, schema: Any) -> None:
    assert fits(text, schema) in (True, False)
    assert fits("[{}]", schema) in (True, False)


def parsed(**fields: Any) -> ParsedRequest:
    """A request with these members."""
    return ParsedRequest(
        model="m", stream=False, choices=1, max_output_tokens=None, input_bytes=1, messages=1, extra_tokens=0,
        unbounded=False, include_usage=True, fields={name: msgspec.json.encode(told) for name, told in fields.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({}, None), ({"response_format": {"type": "text"}}, None), ({"response_format": 5}, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}, PERSON),
        ({"text": {"format": {"type": "json_schema", "name": "p", "schema": PERSON}}}, PERSON),
        ({"output_config": {"format": {"type": "json_schema", "schema": PERSON}}}, PERSON),
        ({"generationConfig": {"responseMimeType": "application/json"}}, {"type": "object"}),
        ({"generationConfig": {"responseMimeType": "application/json", "responseSchema": PERSON}}, PERSON),
        ({"generationConfig": {"temperature": 1}}, None),
    ],
)  # fmt: skip
def test_the_form_that_is_asked_for_is_read_in_every_dialect(fields: dict[str, Any], schema: Any) -> None:
    assert schema_asked_for(parsed(**fields)) == schema
    assert schema_asked_for(None, fields) == (schema if "response_format" in fields else None)
