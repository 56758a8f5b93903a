"""The defaults that a custom adapter with one method lives on."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from apikeyrouter.domain.interfaces.provider_adapter import HealthStatus, ProviderAdapter
from apikeyrouter.domain.models.api_key import KeyMaterial
from apikeyrouter.domain.models.request_intent import Message, RequestIntent
from apikeyrouter.domain.models.system_error import (
    ErrorCategory,
    SystemError,
)
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse

INTENT = RequestIntent(model="m", messages=[Message(role="user", content="hello")])
KEY = KeyMaterial("sk-1", key_id="k1")


class MyCustomAdapter(ProviderAdapter):
    """The least there can be."""

    def __init__(self, answer: Any = "hello") -> None:
        self.answer = answer

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return self.answer


class StreamingAdapter(MyCustomAdapter):
    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        yield StreamChunk(text="he")
        yield StreamChunk(text="llo", last=True)


def test_an_adapter_without_the_one_method_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="execute_request"):
        ProviderAdapter()  # type: ignore[abstract]


async def test_everything_else_has_a_default() -> None:
    adapter = MyCustomAdapter()
    assert adapter.get_provider_id() == "my-custom"
    assert await adapter.check_health(KEY) is True
    assert (await adapter.get_health()).status is HealthStatus.Unknown
    assert (await adapter.get_health()).healthy
    assert await adapter.estimate_cost(INTENT) is None
    assert adapter.get_capabilities().serves("anything")
    assert not adapter.get_capabilities().streaming
    assert StreamingAdapter().get_capabilities().streaming


async def test_a_whole_answer_streams_as_one_chunk() -> None:
    chunks = [chunk async for chunk in MyCustomAdapter().execute_stream(INTENT, KEY)]
    assert [(str(chunk), chunk.last) for chunk in chunks] == [("hello", True)]
    assert chunks[0].usage is not None


def test_answers_are_taken_as_response_text_or_mapping() -> None:
    adapter = MyCustomAdapter()
    response = SystemResponse(content="x", metadata=ResponseMetadata(model_used="m"))
    assert adapter.normalize_response(response) is response
    assert adapter.normalize_response("x").content == "x"
    told = {"content": "x", "model": "m", "usage": {"prompt_tokens": 3, "output_tokens": 4}, "finish_reason": "stop"}
    made = adapter.normalize_response(told)
    assert (made.metadata.tokens_used.total, made.metadata.finish_reason, made.raw) == (7, "stop", told)
    assert adapter.normalize_response({"content": "x", "usage": {"input_tokens": -1}}).metadata.tokens_used.total == 0


@pytest.mark.parametrize("answer", [None, 5, b"bytes", {}, {"content": None}, ["x"]])
def test_an_answer_of_no_known_shape_is_an_error_that_says_what_to_do(answer: Any) -> None:
    with pytest.raises(SystemError, match="override normalize_response"):
        MyCustomAdapter().normalize_response(answer)


def http_error(status: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://provider")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("failed: sk-1", request=request, response=response)


@pytest.mark.parametrize(
    ("status", "category", "retryable"),
    [
        (400, ErrorCategory.ValidationError, False), (401, ErrorCategory.AuthenticationError, False),
        (402, ErrorCategory.QuotaExceededError, False), (403, ErrorCategory.AuthenticationError, False),
        (404, ErrorCategory.ValidationError, False), (408, ErrorCategory.TimeoutError, True),
        (429, ErrorCategory.RateLimitError, True), (500, ErrorCategory.ProviderError, True),
        (503, ErrorCategory.ProviderError, True), (504, ErrorCategory.TimeoutError, True),
    ],
)  # fmt: skip
def test_an_http_error_is_read_by_its_status(status: int, category: ErrorCategory, retryable: bool) -> None:
    error = MyCustomAdapter().map_error(http_error(status))
    assert (error.category, error.retryable) == (category, retryable)
    assert "sk-1" not in str(error)


@pytest.mark.parametrize(
    ("told", "seconds"), [("7", 7), ("1.2", 2), ("-1", None), ("inf", None), ("x", None), ("1e9", 86_400)]
)
def test_a_retry_after_is_taken_when_it_makes_sense(told: str, seconds: int | None) -> None:
    assert MyCustomAdapter().map_error(http_error(429, **{"retry-after": told})).retry_after == seconds


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (TimeoutError(), ErrorCategory.TimeoutError), (httpx.ReadTimeout("x"), ErrorCategory.TimeoutError),
        (httpx.ConnectError("x"), ErrorCategory.NetworkError), (ConnectionResetError(), ErrorCategory.NetworkError),
        (KeyError("x"), ErrorCategory.UnknownError),
    ],
)  # fmt: skip
def test_other_exceptions_are_read_by_their_type(error: Exception, category: ErrorCategory) -> None:
    assert MyCustomAdapter().map_error(error).category is category


def test_a_system_error_is_left_as_it_is() -> None:
    error = SystemError("x", category=ErrorCategory.QuotaExceededError)
    assert MyCustomAdapter().map_error(error) is error
