"""The adapter for any HTTP API: what it sends, what it reads, what it costs, and what goes wrong."""

import asyncio
import base64
import gzip
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from apikeyrouter import ApiKeyRouter, BudgetExceededError, InvalidRequestError
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState
from apikeyrouter.domain.models.request_intent import Message, Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory, ProviderError
from apikeyrouter.infrastructure.adapters.generic_http_adapter import GenericHTTPAdapter
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.registry import make_adapter
from apikeyrouter.infrastructure.config.compiled import ProviderRecord
from tests.adapters import raw_upstream
from tests.router.house import MASTER_KEY

SECRET = "generic-secret-0123456789"
Answer = tuple[int, dict[str, str], bytes]


class Upstream:
    """A small ASGI app that notes what it gets and answers what it is told."""

    def __init__(self, status: int = 200, body: Any = None, **headers: str) -> None:
        self.seen: list[dict[str, Any]] = []
        kind = {"content-type": "application/json"} if not isinstance(body, bytes) else {}
        self.status, self.headers = status, {**kind, **{name.replace("_", "-"): told for name, told in headers.items()}}
        self.body = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append(
            {
                "method": scope["method"],
                "path": scope["raw_path"].decode(),
                "query": {name: found[-1] for name, found in parse_qs(scope["query_string"].decode()).items()},
                "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
                "body": body,
            }
        )
        head = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})

    def adapter(self, **options: Any) -> GenericHTTPAdapter:
        """An adapter that talks to it."""
        return GenericHTTPAdapter("http://api.test", transport=httpx.ASGITransport(app=self), **options)  # type: ignore[arg-type]


def intent(model: str = "geo", **payload: Any) -> RequestIntent:
    return RequestIntent(model=model, operation=Operation.Http, payload=payload)


KEY = KeyMaterial(SECRET, key_id="k")


@pytest.mark.parametrize(
    ("auth", "seen"),
    [
        ("bearer", {"authorization": f"Bearer {SECRET}"}),
        ("basic", {"authorization": "Basic " + base64.b64encode(SECRET.encode()).decode()}),
        ({"header": "X-Api-Key"}, {"x-api-key": SECRET}),
        ({"header": "Authorization", "prefix": "Token "}, {"authorization": f"Token {SECRET}"}),
        ("none", {}),
    ],
)
async def test_the_key_goes_where_the_api_wants_it(auth: Any, seen: dict[str, str]) -> None:
    upstream = Upstream()
    await upstream.adapter(auth=auth).execute_request(intent(), KEY)
    headers = upstream.seen[0]["headers"]
    assert {name: headers[name] for name in seen} == seen
    assert (SECRET in str(headers)) is (auth not in ("none", "basic"))


async def test_a_key_in_the_query_stays_beside_what_was_asked() -> None:
    upstream = Upstream()
    await upstream.adapter(method="GET", path="/find", auth={"query": "key"}).execute_request(intent(q="a b"), KEY)
    assert upstream.seen[0]["query"] == {"q": "a b", "key": SECRET}


async def test_a_payload_becomes_path_query_and_body() -> None:
    upstream = Upstream(body={"result": {"text": "sunny"}})
    adapter = upstream.adapter(
        method="PUT",
        path="/v1/{model}/{city}/now",
        query=["unit"],
        headers={"X-Client": "house"},
        content="result.text",
    )
    answer = await adapter.execute_request(intent(city="São Paulo/2", unit="c", days=[1, 2]), KEY)
    (seen,) = upstream.seen
    assert (seen["method"], seen["path"]) == ("PUT", "/v1/geo/S%C3%A3o%20Paulo%2F2/now")
    assert (seen["query"], json.loads(seen["body"])) == ({"unit": "c"}, {"days": [1, 2]})
    assert seen["headers"]["x-client"] == "house"
    assert (answer.content, answer.raw) == ("sunny", {"result": {"text": "sunny"}})


@pytest.mark.parametrize(
    ("options", "query", "body"),
    [
        ({"method": "GET"}, {"a": "1", "b": "true"}, b""),
        ({"body": "form"}, {}, b"a=1&b=true"),
        ({"body": "none"}, {}, b""),
        ({"body": "query", "method": "POST"}, {"a": "1", "b": "true"}, b""),
    ],
)
async def test_what_the_path_does_not_use_goes_where_it_is_said(
    options: dict[str, Any], query: dict[str, str], body: bytes
) -> None:
    upstream = Upstream()
    await upstream.adapter(path="/x", **options).execute_request(intent(a=1, b=True), KEY)
    assert (upstream.seen[0]["query"], upstream.seen[0]["body"]) == (query, body)


async def test_each_endpoint_is_asked_in_its_own_way() -> None:
    upstream = Upstream()
    adapter = upstream.adapter(
        path="/other", endpoints={"geo": {"method": "GET", "path": "/geo/{q}"}, "say": {"path": "/say"}}
    )
    for wanted in (intent("geo", q="x"), intent("say", q="x"), intent("new")):
        await adapter.execute_request(wanted, KEY)
    assert [(seen["method"], seen["path"]) for seen in upstream.seen] == [
        ("GET", "/geo/x"),
        ("POST", "/say"),
        ("POST", "/other"),
    ]
    assert adapter.get_capabilities().models == frozenset({"geo", "say"})


async def test_usage_and_cost_are_read_where_they_stand() -> None:
    upstream = Upstream(body={"usage": {"in": 12, "out": [7]}, "bill": {"usd": 0.0015}})
    adapter = upstream.adapter(usage={"input_tokens": "usage.in", "output_tokens": "$.usage.out[0]"}, cost="bill.usd")
    answer = await adapter.execute_request(intent(), KEY)
    assert (answer.metadata.tokens_used.input_tokens, answer.metadata.tokens_used.output_tokens) == (12, 7)
    assert answer.cost is not None
    assert answer.cost.amount == Decimal("0.0015")
    assert await adapter.estimate_cost(intent()) is None


async def test_functions_may_tell_usage_and_cost() -> None:
    upstream = Upstream(body={"pages": 3})
    adapter = upstream.adapter(
        usage=lambda answer: {"output_tokens": answer["pages"]},
        cost=lambda wanted, answer: Decimal("0.01") * (answer["pages"] if answer else wanted.payload["pages"]),
    )
    answer = await adapter.execute_request(intent(pages=5), KEY)
    assert (answer.metadata.tokens_used.output_tokens, answer.cost and answer.cost.amount) == (3, Decimal("0.03"))
    expected = await adapter.estimate_cost(intent(pages=5))
    assert expected is not None
    assert (expected.amount, expected.bound) == (Decimal("0.05"), None)


@pytest.mark.parametrize(
    ("body", "kind", "raw", "content"),
    [
        (b"plain", "text/plain; charset=utf-8", "plain", "plain"),
        (b"\x00\x01", "image/png", b"\x00\x01", ""),
        (b"", "application/json", b"", ""),
    ],
)
async def test_answers_that_are_no_json_come_as_they_are(body: bytes, kind: str, raw: Any, content: str) -> None:
    upstream = Upstream(body=body, content_type=kind)
    answer = await upstream.adapter().execute_request(intent(), KEY)
    assert (answer.raw, answer.content) == (raw, content)


ERRORS = [
    {
        "status": 403,
        "path": "error.code",
        "equals": "quota",
        "category": "quota_exceeded_error",
        "message": "error.text",
    },
    {"path": "error", "category": "rate_limit_error", "retry_after": "wait"},
]


@pytest.mark.parametrize(
    ("status", "body", "headers", "category", "retry_after"),
    [
        (403, {"error": {"code": "quota", "text": "all gone"}}, {}, ErrorCategory.QuotaExceededError, None),
        (200, {"error": "slow down", "wait": 2.5}, {}, ErrorCategory.RateLimitError, 3),
        (403, {"error": {"code": "other"}}, {"retry_after": "9"}, ErrorCategory.RateLimitError, 9),
        (401, {}, {}, ErrorCategory.AuthenticationError, None),
        (503, {}, {"retry_after": "7"}, ErrorCategory.ProviderError, 7),
        (404, b"<html>", {}, ErrorCategory.ValidationError, None),
    ],
)
async def test_errors_mean_what_the_rules_say_and_else_what_their_status_says(
    status: int, body: Any, headers: dict[str, str], category: ErrorCategory, retry_after: int | None
) -> None:
    adapter = Upstream(status, body, **headers).adapter(errors=ERRORS)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its meaning is what counts)
        await adapter.execute_request(intent(), KEY)
    error = adapter.map_error(caught.value)
    assert (error.category, error.retry_after) == (category, retry_after)
    assert SECRET not in f"{error!r} {error.details}"


async def test_json_that_is_none_and_costs_that_are_none_are_the_providers_errors() -> None:
    for upstream in (Upstream(body=b"{", content_type="application/json"), Upstream(body={"usd": "NaN"})):
        with pytest.raises(ProviderError):
            await upstream.adapter(cost="usd").execute_request(intent(), KEY)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": None},
        {"base_url": "ftp://x"},
        {"method": "BREW"},
        {"path": "x"},
        {"body": "xml"},
        {"auth": {"cookie": "x"}},
        {"content": "a..b"},
        {"usage": {"words": "a"}},
        {"cost": -1},
        {"cost": "a..b"},
        {"errors": [{"status": 400, "category": "nonsense"}]},
        {"errors": [{"category": "rate_limit_error"}]},
        {"errors": [{"status": 400, "categry": "x"}]},
        {"endpoints": {"x": {"pth": "/"}}},
        {"operations": ["telepathy"]},
    ],
)
def test_a_part_that_cannot_be_understood_is_refused_when_it_is_made(options: dict[str, Any]) -> None:
    given = {"base_url": "http://api.test", **options}
    with pytest.raises((ConfigurationError, ProviderError)):
        GenericHTTPAdapter(given.pop("base_url"), **given)


def test_a_configuration_file_can_make_one() -> None:
    options = {"path": "/{q}", "auth": {"header": "X-Key"}, "cost": "0.01", "errors": ERRORS}
    record = ProviderRecord(id="geo", adapter="generic", base_url="http://api.test", lane="p:geo", options=options)
    assert make_adapter(record).get_provider_id() == "geo"
    with pytest.raises(ConfigurationError, match=r"providers\.geo"):
        make_adapter(ProviderRecord(id="geo", adapter="generic", base_url=None, lane="p:geo", options={}))


async def routed(upstream: Upstream, **options: Any) -> ApiKeyRouter:
    """A router with one generic provider and one key."""
    router = ApiKeyRouter(config={"encryption_key": MASTER_KEY})
    await router.register_provider("geo", upstream.adapter(**options))
    await router.register_key(SECRET, "geo")
    return router


def wanted(**payload: Any) -> dict[str, Any]:
    return {"model": "geo", "operation": "http", "payload": payload, "provider_id": "geo"}


async def settled(router: ApiKeyRouter, scope: str) -> tuple[int, int]:
    """Nano-dollars settled and held in a scope, once all has ended."""
    assert await router.books.flush(seconds=5)
    (state,) = await router.ledger.scopes([scope])
    return state.settled, state.held


async def test_what_it_costs_is_held_booked_and_told() -> None:
    upstream = Upstream(body={"usd": 0.002})
    async with await routed(upstream, cost=lambda _, answer: answer["usd"] if answer else 0.005) as router:
        budget = await router.cost_controller.create_budget("global", 1, "total", "soft")
        answer = await router.route(wanted(q="x"))
        assert answer.metadata.cost_actual == Decimal("0.002")
        assert await settled(router, budget.id) == (2_000_000, 0)


async def test_a_hard_budget_stops_what_a_fixed_price_would_exceed() -> None:
    upstream = Upstream()
    async with await routed(upstream, cost="0.4") as router:
        budget = await router.cost_controller.create_budget("global", 1, "total", "hard")
        for _ in range(2):
            await router.route(wanted())
        with pytest.raises(BudgetExceededError):
            await router.route(wanted())
        assert len(upstream.seen) == 2
        assert await settled(router, budget.id) == (800_000_000, 0)


async def test_a_request_that_lacks_a_field_is_refused_before_anything_is_held() -> None:
    upstream = Upstream()
    async with await routed(upstream, path="/{city}") as router:
        with pytest.raises(InvalidRequestError, match="city"):
            await router.route(wanted())
        with pytest.raises(InvalidRequestError, match="operation"):
            await router.route({"model": "geo", "messages": [{"role": "user", "content": "x"}], "provider_id": "geo"})
        assert upstream.seen == []
        (key,) = router.catalogue.keys.values()
        assert key.state is KeyState.Available


async def test_a_key_that_the_api_refuses_is_out() -> None:
    async with await routed(Upstream(401, {"error": f"bad {SECRET}"})) as router:
        with pytest.raises(ProviderError) as caught:
            await router.route(wanted())
        assert caught.value.category is ErrorCategory.AuthenticationError
        assert SECRET not in f"{caught.value!r} {caught.value.details}"
        (key,) = router.catalogue.keys.values()
        assert key.state is KeyState.Invalid


async def test_health_is_asked_where_a_path_is_told() -> None:
    upstream = Upstream(403)
    adapter = upstream.adapter(health_path="/ping", auth={"header": "X-Key"})
    assert not await adapter.check_health(KEY)
    assert (await adapter.get_health()).healthy
    assert [seen["headers"].get("x-key") for seen in upstream.seen] == [SECRET, None]
    assert await Upstream(403).adapter().check_health(KEY)


async def test_chat_may_be_served_too_in_openais_words() -> None:
    upstream = Upstream(body={"reply": "hi"})
    adapter = upstream.adapter(operations=["chat", "http"], content="reply", path="/chat")
    chat = RequestIntent(model="m", messages=[Message(role="user", content="x")], parameters={"temperature": 0})
    answer = await adapter.execute_request(chat, KEY)
    assert answer.content == "hi"
    assert json.loads(upstream.seen[0]["body"]) == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0,
    }


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "gzip"])
async def test_it_may_use_a_transport_of_ours(coded: bool) -> None:
    body = gzip.compress(b'{"summary":"dry"}') if coded else b'{"summary":"dry"}'
    coding = b"content-encoding: gzip\r\n" if coded else b""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (coding, len(body))
    async with raw_upstream.upstream(raw_upstream.says(head + body)) as (url, seen), LeanTransport() as transport:
        options = {"method": "GET", "path": "/weather", "content": "summary"}
        record = ProviderRecord(id="geo", adapter="generic", base_url=url, lane="p:geo", options=options)
        adapter = make_adapter(record, transport=transport)
        assert isinstance(adapter, GenericHTTPAdapter)
        assert (await adapter.execute_request(intent(q="Rome"), KEY)).content == "dry"
        assert seen[0].startswith(b"GET /weather?q=Rome HTTP/1.1\r\n")
        assert b"authorization: Bearer %b\r\n" % SECRET.encode() in seen[0]
        await adapter.close()
        assert (await adapter.execute_request(intent(q="Rome"), KEY)).content == "dry"  # ours is not its to close


@pytest.mark.parametrize(
    ("answer", "admits", "category"),
    [
        (None, lambda _: False, ErrorCategory.NetworkError),
        (b"", lambda _: True, ErrorCategory.NetworkError),
        (None, lambda _: True, ErrorCategory.TimeoutError),
    ],
    ids=["not-admitted", "closed", "silent"],
)
async def test_trouble_of_a_transport_of_ours_means_the_same(
    answer: bytes | None, admits: Callable[[str], bool], category: ErrorCategory
) -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    asked = silent if answer is None else raw_upstream.says(b"", close=True)
    async with raw_upstream.upstream(asked) as (url, _), LeanTransport(admits=admits) as transport:
        options = {"method": "GET", "seconds": 0.05}
        record = ProviderRecord(id="geo", adapter="generic", base_url=url, lane="p:geo", options=options)
        adapter = make_adapter(record, transport=transport)
        with pytest.raises(httpx.TransportError) as failed:
            await adapter.execute_request(intent(), KEY)
        assert adapter.map_error(failed.value).category is category
