"""Parts of the service by themselves: splicing, counting together, logging, error answers."""

import asyncio
import json
import os
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from apikeyrouter.domain.models.accounting import Loss, Reason, RetryKind
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ClockSuspectError,
    ConfigurationError,
    ErrorCategory,
    InvalidRequestError,
    LedgerConfigError,
    LedgerError,
    LedgerProtocolError,
    LedgerUnavailableError,
    NoEligibleKeysError,
    StaleConfigError,
    StateStoreError,
    StateStoreUnavailableError,
    SystemError,
)
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.observability import metric_names
from apikeyrouter.infrastructure.surface.answers import metadata_member, splice_metadata
from apikeyrouter.infrastructure.surface.problems import problem_headers, problem_of
from apikeyrouter.infrastructure.surface.routes import ROUTES, ROUTES_WITH_NAMES
from apikeyrouter.serving.answers import outcome_of
from apikeyrouter_proxy.access_log import AccessLog
from apikeyrouter_proxy.edge import add_error_handlers
from apikeyrouter_proxy.metrics import SERIES_MAX, Metrics, add_counters
from apikeyrouter_proxy.metrics_sharing import DEAD_SECONDS, SharedMetrics
from apikeyrouter_proxy.options import ProxyOptions
from apikeyrouter_proxy.prometheus import render


def facts_of(model: str = "m", *, outcome: str = "ok") -> Facts:
    """A call that ended."""
    facts = Facts(
        request_id="req_1", operation="chat", model=model, stream=False, objective="fairness", team=None, client=None,
        at_us=1, outcome=outcome, usage=Usage(input_tokens=3, output_tokens=5), cost_nanousd=1_500_000_007,
        total_us=1500, overhead_us=120,
    )  # fmt: skip
    facts.attempts.append(AttemptFacts(key_id='k"1', provider_id="openai", model=model, rid=b""))
    return facts


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b"{}", {"m": 1}),
        (b" { } \n", {"m": 1}),
        (b'{"a":1}', {"a": 1, "m": 1}),
        (b'{"a":{}}', {"a": {}, "m": 1}),
        (b'{"a":"{"}', {"a": "{", "m": 1}),
        (b'{"a":"}"}\r\n\t ', {"a": "}", "m": 1}),
        (b'\n{"a":[1,2] }\n', {"a": [1, 2], "m": 1}),
        (b"[1]", [1]),
        (b'"}"', "}"),
        (b"null", None),
    ],
)
def test_a_member_is_spliced_into_objects_only(body: bytes, spliced: object) -> None:
    assert json.loads(splice_metadata(body, b'"m":1')) == spliced


def test_what_is_no_json_stays_as_it_is() -> None:
    assert splice_metadata(b"", b'"m":1') == b""
    assert splice_metadata(b"oops}", b'"m":1') == b"oops}"


def test_routing_metadata_is_json_whatever_the_names() -> None:
    facts = facts_of('mo"del')
    told = json.loads(b"{" + metadata_member(facts) + b"}")["routing_metadata"]
    assert told == {
        "key_used": 'k"1', "provider_id": "openai", "model": 'mo"del', "attempts": 1, "cost": 1.500000007,
        "request_id": "req_1",
    }  # fmt: skip
    facts.cost_nanousd = None
    assert json.loads(b"{" + metadata_member(facts) + b"}")["routing_metadata"]["cost"] is None


def test_counts_are_bounded_and_complete() -> None:
    metrics = Metrics()
    for number in range(SERIES_MAX + 50):
        metrics.observe(facts_of(f"model-{number}"))
    counters = metrics.counters({})
    assert len(counters) <= SERIES_MAX + 1
    assert sum(values[0] for values in counters.values()) == SERIES_MAX + 50


def test_labels_are_escaped_and_histograms_cumulative() -> None:
    metrics = Metrics()
    metrics.observe(facts_of('a"b\\c\nd'))
    metrics.observe(facts_of('a"b\\c\nd'))
    metrics.denied("rate_limit_exceeded")
    text = render(metrics.counters({metric_names.SETTLEMENTS.name: 2}), {})
    labels = 'route="chat",provider="openai"'
    assert f'apikeyrouter_requests_total{{{labels},model="a\\"b\\\\c\\nd",outcome="ok"}} 2' in text
    assert f'apikeyrouter_request_duration_seconds_bucket{{{labels},le="0.001"}} 0' in text
    assert f'apikeyrouter_request_duration_seconds_bucket{{{labels},le="0.0025"}} 2' in text
    assert f'apikeyrouter_request_duration_seconds_bucket{{{labels},le="+Inf"}} 2' in text
    assert f"apikeyrouter_request_duration_seconds_sum{{{labels}}} 0.003000" in text
    assert 'apikeyrouter_denials_total{reason="rate_limit_exceeded"} 1' in text
    assert "apikeyrouter_settlements_total 2" in text


def test_lists_of_another_length_are_left_out_of_a_sum() -> None:
    assert add_counters([{"a": [1, 2]}, {"a": [1, 2, 3]}, {"a": [3, 4]}]) == {"a": [4, 6]}


class Worker:
    """A worker that only counts."""

    def __init__(self, url: str) -> None:
        self.count = 0
        self.shared = SharedMetrics(
            url, namespace="test", counters=lambda: {"n": [self.count]}, gauges=lambda: {"busy": 1}
        )


async def test_dead_workers_counts_are_taken_over_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (Worker(redis_url) for _ in range(3))
    first.count, second.count, third.count = 5, 7, 11
    for worker in (first, second, third):
        await worker.shared.publish()
    assert (await second.shared.totals()).counters == {"n": [23]}
    await first.shared.close()
    after = await second.shared.totals()
    assert (after.counters, after.gauges, after.workers) == ({"n": [23]}, {"busy": 2}, 2)
    await asyncio.gather(second.shared.take_over(), third.shared.take_over())
    assert (await second.shared.totals()).counters == (await third.shared.totals()).counters == {"n": [23]}
    for worker in (second, third):
        await worker.shared.close()


async def test_a_worker_that_was_only_asleep_is_not_counted_twice(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep, awake = Worker(redis_url), Worker(redis_url)
    asleep.count, awake.count = 5, 7
    await asleep.shared.publish()
    await awake.shared.publish()
    monkeypatch.setattr("apikeyrouter_proxy.metrics_sharing.DEAD_SECONDS", -1.0)
    await awake.shared.take_over()
    monkeypatch.setattr("apikeyrouter_proxy.metrics_sharing.DEAD_SECONDS", DEAD_SECONDS)
    asleep.count = 6
    await asleep.shared.publish()
    assert (await awake.shared.totals()).counters == {"n": [13]}
    for worker in (asleep, awake):
        await worker.shared.close()


async def test_counts_without_a_store_are_the_workers_own() -> None:
    shared = SharedMetrics("redis://127.0.0.1:1/0", namespace="test", counters=lambda: {"n": [3]}, gauges=dict)
    assert (await shared.totals()).counters == {"n": [3]}
    await shared.close()


async def test_access_lines_reach_a_pipe_whole_and_all(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(pipe))
    log.start()
    for number in range(50):
        log.observe(facts_of(f"model-{number}"))
    await log.close()
    text = os.read(reader, 1 << 20)
    os.close(reader)
    assert [json.loads(line)["model"] for line in text.splitlines()] == [f"model-{n}" for n in range(50)]
    assert (log.written, log.lost) == (50, 0)


async def test_access_lines_to_a_full_disk_are_counted_as_lost() -> None:
    log = AccessLog("/dev/full")
    log.start()
    log.observe(facts_of())
    await log.close()
    assert (log.written, log.lost) == (0, 1)


async def test_a_log_that_is_off_writes_nothing(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), enabled=False)
    log.start()
    log.observe(facts_of())
    await log.close()
    assert not (tmp_path / "log").exists()


def test_errors_that_are_none_of_ours_say_nothing_of_themselves() -> None:
    problem = problem_of(RuntimeError("secret"), "openai")
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in problem.message
    assert problem_of(ApiKeyRouterError("anything"), "openai").status == 500


@pytest.mark.parametrize("error", [LedgerConfigError("script refused 17"), LedgerProtocolError("script refused 17")])
async def test_what_the_accounting_refuses_is_our_fault_and_no_outage(error: LedgerError) -> None:
    for dialect in ("openai", "anthropic", "gemini"):
        problem = problem_of(error, dialect)
        assert (problem.status, problem.code, problem.retry) == (500, "internal_error", False)
        assert "17" not in problem.message
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def refused() -> None:
        raise error

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "17" not in answer.text


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (LedgerUnavailableError("gone"), "store_error"),
        (ClockSuspectError("global:all", retry_after=2), "store_error"),
        (StaleConfigError(3), "store_error"),
        (StateStoreUnavailableError("gone"), "store_error"),
        (LedgerConfigError("script refused 17"), "accounting_error"),
        (LedgerProtocolError("script refused 17"), "accounting_error"),
        (RuntimeError("anything"), "internal_error"),
    ],
    ids=lambda told: type(told).__name__ if isinstance(told, Exception) else told,
)
def test_metrics_tell_a_store_that_is_away_from_accounting_that_refuses(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome
    assert (problem_of(error, "openai").status == 503) == (outcome == "store_error")


def test_a_store_that_is_away_is_worth_a_retry_in_both_dialects() -> None:
    for dialect, status in (("openai", 503), ("anthropic", 529)):
        problem = problem_of(LedgerUnavailableError("gone"), dialect)
        headers = dict(problem_headers(problem))
        assert (problem.status, headers[b"x-should-retry"]) == (status, b"true")
        assert 1000 <= int(headers[b"retry-after-ms"]) <= 2000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROXY_BODY_BYTES_MAX", "0"),
        ("PROXY_BODY_BYTES_MAX", "lots"),
        ("PROXY_DRAIN_SECONDS", "nan"),
        ("PROXY_DRAIN_SECONDS", "-1"),
        ("PROXY_ACCESS_LOG", "maybe"),
    ],
)
def test_a_wrong_option_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        ProxyOptions.read({name: value})


def test_an_option_is_taken_with_the_prefix_which_wins() -> None:
    told = {
        "PROXY_DRAIN_SECONDS": "7",
        "APIKEYROUTER_PROXY_DRAIN_SECONDS": "8.5",
        "APIKEYROUTER_PROXY_ACCESS_LOG": "no",
    }
    options = ProxyOptions.read(told)
    assert (options.drain_seconds, options.access_log) == (8.5, False)


def test_the_page_about_metrics_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    metrics = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.help} |"
        for metric in metric_names.METRICS
    ]
    assert rows == metrics + [f"| `{name}` | {meaning} |" for name, meaning in metric_names.OUTCOMES.items()]


def test_the_page_about_metrics_names_every_route() -> None:
    """Those of the table, and what has no path of its own."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    told = page.partition("`route` is the operation: ")[2].partition(".")[0]
    known = {route.operation for route in (*ROUTES.values(), *ROUTES_WITH_NAMES)}
    assert told.replace("\n", " ").split(", ") == sorted(known | {"lease", "stream_events", "unknown"})


@pytest.mark.parametrize(
    "error",
    [
        *(SystemError("x", category=category) for category in ErrorCategory),
        InvalidRequestError("x"), NoEligibleKeysError(), LedgerUnavailableError("x"), StateStoreError("x"),
        asyncio.CancelledError(), RuntimeError("x"), ApiKeyRouterError("x"),
    ],
)  # fmt: skip
def test_every_error_is_counted_under_an_outcome_of_the_table(error: BaseException) -> None:
    assert outcome_of(error) in metric_names.OUTCOMES


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_providers_that_are_left_alone_for_a_while_are_no_rate_limit(dialect: str) -> None:
    loss = Loss(
        index=0, reason=Reason.BREAKER_OPEN, where="p:openai", limit="", retry_at_us=5_000_000,
        retry_kind=RetryKind.EXACT,
    )  # fmt: skip
    problem = problem_of(NoEligibleKeysError(retry_after_us=4_000_000, binding=loss), dialect)
    assert problem.status == {"openai": 503, "anthropic": 529}[dialect]
    assert (problem.code, problem.retry, problem.retry_after_ms) == ("server_is_overloaded", True, 4000)


async def test_a_cancellation_that_the_client_swallows_does_not_keep_a_worker_from_ending(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedMetrics(redis_url, namespace="swallowed", counters=dict, gauges=dict)
    publishing = asyncio.Event()

    async def publish(*, live: bool = True) -> None:
        publishing.set()
        try:
            await asyncio.sleep(60 if live else 0)
        except asyncio.CancelledError as exc:
            raise OSError("taken for a time-out") from exc

    monkeypatch.setattr(shared, "publish", publish)
    shared.start()
    await publishing.wait()
    async with asyncio.timeout(10):
        await shared.close()
