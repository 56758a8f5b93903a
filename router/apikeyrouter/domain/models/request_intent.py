"""What a caller wants: a model, messages (or another payload), and hints for routing."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator, model_validator

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["Message", "Operation", "RequestIntent", "refuse_bad_name", "refuse_non_finite", "refuse_unwritable"]

NAME_LENGTH_MAX = 256
MODEL_LENGTH_MAX = 512
"""Longest name of a model, in characters; fine-tuned ones and those in clouds are the longest in use."""
"""Longest model, provider, team or client name."""
PARAMETER_DEPTH_MAX = 32
"""How deep `parameters` and `payload` may nest."""
PATH_LENGTH_MAX = 24
"""Of the path to what nests too deep, so many characters are told."""
COUNT_MAX = 2**31 - 1
"""Largest token cap or number of choices a request may name."""
_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Operation(CaseFolding):
    """What is asked of the provider."""

    Chat = "chat"
    Completion = "completion"
    Embedding = "embedding"
    Responses = "responses"
    Http = "http"


class Message(EdgeModel):
    """One message of a conversation. `content` may be None only where the assistant called tools instead."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    function_call: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_something_to_say(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise InvalidRequestError("is required", field="content")
        if self.content is None and not (self.tool_calls or self.function_call):
            raise InvalidRequestError("is required unless there are tool_calls or a function_call", field="content")
        for name in ("content", "function_call", "tool_calls"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                refuse_non_finite(value, name)
        return self

    def to_wire(self) -> dict[str, Any]:
        """The fields that are set, as a plain mapping (a new one; lists inside are shared)."""
        told = {name: value for name, value in self if value is not None}
        told.setdefault("content", None)
        return told


class RequestIntent(EdgeModel):
    """One request, before anything is decided about it.

    `provider_id` pins a provider (field, key of the dict, or inside `parameters`, from which it is taken out); absent,
    any provider that serves the model is a candidate. `payload` is the body of what is not chat. `tags` are counted in
    usage reports; the tag `session` names the conversation, whose prompt a provider may have cached. Errors:
    `InvalidRequestError` naming the field.
    """

    _unknown: ClassVar[str] = "; what the model is to be told (temperature, max_tokens, tools, …) goes into parameters"

    model: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    messages: list[Message] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    provider_id: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    team: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    client: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    tags: dict[str, str] = Field(default_factory=dict)
    operation: Operation = Operation.Chat
    payload: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_provider_out_of_parameters(cls, data: Any) -> Any:
        parameters = data.get("parameters") if isinstance(data, Mapping) else None
        if not isinstance(parameters, Mapping) or "provider_id" not in parameters:
            return data
        rest = dict(parameters)
        named = rest.pop("provider_id")
        if data.get("provider_id") not in (None, named):
            raise InvalidRequestError("contradicts parameters.provider_id", field="provider_id")
        return {**data, "parameters": rest, "provider_id": named}

    @field_validator("operation", mode="before")
    @classmethod
    def _known_operation(cls, value: object) -> object:
        found = Operation.lookup(value) if isinstance(value, str) else None
        if found is None:
            raise InvalidRequestError(f"must be one of {', '.join(Operation)}")
        return found

    @field_validator("model", mode="after")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise InvalidRequestError("must not be blank")
        return value

    @field_validator("parameters", "payload", mode="after")
    @classmethod
    def _finite_numbers(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in value or {}:
            refuse_non_finite((value or {})[name], name)
        return value

    @field_validator("tags", mode="after")
    @classmethod
    def _valid_tags(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            refuse_bad_name(name, "", empty=True)
            refuse_bad_name(text, name, empty=True)
        return value

    @model_validator(mode="after")
    def _complete(self) -> "RequestIntent":
        if self.operation is Operation.Chat:
            if not self.messages:
                raise InvalidRequestError("must have at least one message", field="messages")
        elif self.payload is None:
            raise InvalidRequestError(f"is required for operation {self.operation.value!r}", field="payload")
        for name in _COUNTS:
            _refuse_bad_count(self.parameters, name)
        return self

    def text_parts(self) -> Iterator[str]:
        """Every piece of text in the messages, for estimates. Images and tool calls are not text."""
        for message in self.messages:
            if isinstance(message.content, str):
                yield message.content
            elif message.content:
                yield from (part["text"] for part in message.content if isinstance(part.get("text"), str))

    def to_wire_messages(self) -> list[dict[str, Any]]:
        """The messages as plain mappings, unset fields left out."""
        return [message.to_wire() for message in self.messages]

    def refuse_unwritable(self) -> None:
        """Raise InvalidRequestError naming the first field that JSON cannot hold, if there is one."""
        for at, message in enumerate(self.messages):
            refuse_unwritable(message.to_wire(), f"messages[{at}]", msgspec.json.encode)
        refuse_unwritable(self.parameters, "parameters", msgspec.json.encode)
        refuse_unwritable(self.payload or {}, "payload", msgspec.json.encode)


def _refuse_bad_count(parameters: Mapping[str, Any], name: str) -> None:
    value = parameters.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= COUNT_MAX:
        raise InvalidRequestError("must be a positive integer", field=f"parameters.{name}")


def refuse_bad_name(value: object, field: str, *, empty: bool = False) -> None:
    """Raise InvalidRequestError for what is no name of a model, a provider, a team or a client, and no tag."""
    if not isinstance(value, str) or not (value or empty):
        raise InvalidRequestError("must be a non-empty text", field=field)
    if len(value) > NAME_LENGTH_MAX and not empty:
        raise InvalidRequestError(f"must have at most {NAME_LENGTH_MAX} characters", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("must be valid Unicode", field=field) from None


def refuse_bad_model(value: str, field: str) -> None:
    """Raise InvalidRequestError for no name of a model: names go into logs, and at some providers into a path."""
    if not value.strip():
        raise InvalidRequestError("must not be blank", field=field)
    if len(value) > MODEL_LENGTH_MAX:
        raise InvalidRequestError(f"must have at most {MODEL_LENGTH_MAX} characters", field=field)
    if not value.isprintable() or ".." in value.split("/"):
        raise InvalidRequestError("must be printable, and no path", field=field)


def refuse_unwritable(fields: Mapping[str, Any], path: str, write: Callable[[Any], bytes]) -> None:
    """Raise InvalidRequestError naming the first field that `write` cannot put into JSON: `path` and its name."""
    for name, value in fields.items():
        try:
            write({name: value})
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            told = str(name).encode("ascii", "backslashreplace").decode()
            field = f"{path}.{told}" if path else told
            raise InvalidRequestError("must be what JSON can hold, its text valid Unicode", field=field) from exc


def refuse_non_finite(value: object, path: str, depth: int = 0) -> None:
    """Raise InvalidRequestError naming the number that is none, or what nests too deep, in a value named `path`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequestError("must be a finite number", field=path)
    if isinstance(value, str | bytes) or not isinstance(value, Mapping | Sequence | Set):
        return
    if depth >= PARAMETER_DEPTH_MAX:
        field = path if len(path) <= PATH_LENGTH_MAX else f"{path[:PATH_LENGTH_MAX]}…"
        raise InvalidRequestError(f"must not nest deeper than {PARAMETER_DEPTH_MAX}", field=field)
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, item in items:
        refuse_non_finite(item, f"{path}[{name}]" if isinstance(name, int) else f"{path}.{name}", depth + 1)
