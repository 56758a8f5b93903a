"""Every method of an adapter of one's own, failing in every way: an error of ours that names it, and nothing held."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ApiKeyRouterError, BudgetExceededError, InvalidRequestError, ProviderError
from apikeyrouter.domain.components import key_probing
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter, ProviderCapabilities
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.serving import requests
from tests.router.house import MASTER_KEY, intent

pytestmark = pytest.mark.asyncio(loop_scope="package")
SECRET = "custom-key-material-0123456789"
Act = Callable[..., Any]


def fail(*_: Any) -> Any:
    """Raise what tells the secret."""
    raise RuntimeError(f"no: {SECRET}")


def cancel(*_: Any) -> Any:
    """Raise a cancellation that nobody asked for."""
    raise asyncio.CancelledError


async def hang(*_: Any) -> Any:
    """Never end."""
    await asyncio.sleep(3600)


def giving(value: Any) -> Act:
    """Return that."""
    return lambda *_: value


def later(act: Act) -> Act:
    """The same, of an async method."""

    async def acting(*args: Any) -> Any:
        done = act(*args)
        return await done if asyncio.iscoroutine(done) else done

    return acting


class Own(ProviderAdapter):
    """Answers; each method may be replaced by something else."""

    def __init__(self, **acts: Act) -> None:
        for name, act in acts.items():
            setattr(self, name, act)

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return "answer"


@asynccontextmanager
async def routed(adapter: ProviderAdapter, **metadata: Any) -> AsyncIterator[ApiKeyRouter]:
    """A router over one adapter with one key. At the end nothing is held, and nothing open."""
    async with ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": MASTER_KEY}) as router:
        router.timeouts = Timeouts(total=0.3)
        await router.register_provider("custom", adapter)
        await router.register_key(SECRET, "custom", metadata)
        yield router
        assert router.in_flight == 0
        assert await router.books.flush(seconds=5)
        assert router.books.open == {}
        assert [lane.id for lane in await router.ledger.lanes(router.catalogue.lane_ids()) if lane.in_flight] == []
        assert await router.ledger.audit(lanes=router.catalogue.lane_ids(), scopes=[]) == []


async def stream(router: ApiKeyRouter) -> list[Any]:
    """A whole stream."""
    return [chunk async for chunk in router.route_stream(intent())]


async def ask(router: ApiKeyRouter) -> Any:
    """A whole answer."""
    return await router.route(intent())


async def quote(router: ApiKeyRouter) -> Any:
    """What it would cost."""
    return await router.cost_controller.estimate_request_cost(RequestIntent.parse(intent()))


def tells_no_secret(error: BaseException) -> None:
    """Neither the error nor what it carries."""
    assert SECRET not in f"{error} {error!r} {getattr(error, 'details', '')}"


SYNC: dict[str, Act] = {"raises": fail, "cancels": cancel, "a number": giving(5), "a coroutine": lambda *_: hang()}
ASYNC: dict[str, Act] = {
    "raises": later(fail), "cancels": later(cancel), "is not async": giving("answer"), "none": later(giving(None)),
    "a number": later(giving(5)), "hangs": later(hang), "raises at once": fail, "cancels at once": cancel,
}  # fmt: skip


def own(error: BaseException) -> BaseException | None:
    """What the adapter raised, as far as it is told."""
    return error.__cause__


@pytest.mark.parametrize("door", [ask, stream, quote])
@pytest.mark.parametrize("how", SYNC)
async def test_check_intent(how: str, door: Callable[[ApiKeyRouter], Awaitable[Any]]) -> None:
    async with routed(Own(check_intent=SYNC[how])) as router:
        with pytest.raises(ProviderError, match=r"'custom' \(Own\): check_intent (failed|returned)") as caught:
            await door(router)
        assert (how in ("raises", "cancels")) == (own(caught.value) is not None)
        tells_no_secret(caught.value)


async def test_where_one_adapter_cannot_be_asked_another_serves() -> None:
    async with routed(Own(check_intent=fail)) as router:
        await router.register_provider("sound", Own())
        key = await router.register_key("another-key-material-0123456789", "sound")
        assert {(await router.route(intent())).key_used for _ in range(4)} == {key.id}


@pytest.mark.parametrize("how", ASYNC)
async def test_execute_request(how: str) -> None:
    async with routed(Own(execute_request=ASYNC[how])) as router:
        with pytest.raises(ProviderError) as caught:
            await ask(router)
        assert own(caught.value) is None, "its traceback would show the key"
        assert caught.value.details["provider_id"] == "custom"
        tells_no_secret(caught.value)


@pytest.mark.parametrize("how", ASYNC)
async def test_execute_stream(how: str) -> None:
    async with routed(Own(execute_stream=ASYNC[how])) as router:
        with pytest.raises(ProviderError) as caught:
            await stream(router)
        tells_no_secret(caught.value)


@pytest.mark.parametrize("how", [*SYNC, "none"])
async def test_normalize_response(how: str) -> None:
    async with routed(Own(normalize_response={**SYNC, "none": giving(None)}[how])) as router:
        with pytest.raises(ProviderError) as caught:
            await ask(router)
        tells_no_secret(caught.value)


@pytest.mark.parametrize("how", [*SYNC, "none"])
@pytest.mark.parametrize("door", [ask, stream])
async def test_map_error(how: str, door: Callable[[ApiKeyRouter], Awaitable[Any]]) -> None:
    async with routed(Own(execute_request=later(fail), map_error={**SYNC, "none": giving(None)}[how])) as router:
        with pytest.raises(ProviderError) as caught:
            await door(router)
        tells_no_secret(caught.value)


ABLE: Any = ProviderCapabilities
NONSENSE = [
    None, 5, ABLE(models="gpt"), ABLE(models=5), ABLE(models={5}),
    ABLE(operations=None), ABLE(operations={"chat"}),
    ABLE(quality={"m": float("nan")}), ABLE(quality=5),
]  # fmt: skip


@pytest.mark.parametrize("act", [fail, cancel, lambda: hang(), *map(giving, NONSENSE)])
async def test_get_capabilities(act: Act) -> None:
    async with routed(Own()) as router:
        with pytest.raises(ConfigurationError, match=r"'new' \(Own\): get_capabilities (failed|returned)") as caught:
            await router.register_provider("new", Own(get_capabilities=act))
        tells_no_secret(caught.value)
        assert "new" not in router.catalogue.providers
        assert (await ask(router)).content == "answer"


async def test_models_of_an_adapter_may_be_any_collection() -> None:
    able = ABLE(models=["parrot"])
    async with routed(Own(get_capabilities=giving(able))) as router:
        assert (await router.route(intent(model="parrot"))).content == "answer"
        with pytest.raises(InvalidRequestError):
            await ask(router)


@pytest.mark.parametrize("method", ["probe_key", "check_health"])
@pytest.mark.parametrize("how", [how for how in ASYNC if how != "none"])
async def test_a_probe_that_fails_has_found_nothing_out(monkeypatch: pytest.MonkeyPatch, how: str, method: str) -> None:
    monkeypatch.setattr(key_probing, "PROBE_SECONDS_MAX", 0.1)
    async with routed(Own(**{method: ASYNC[how]})) as router:
        (key,) = await router.key_manager.list_keys()
        probe = await router.key_manager.probe_key(key.id)
        assert (probe.works, probe.state) == (None, "available")
        assert "the probe failed" in probe.message
        assert SECRET not in probe.message
        assert (await ask(router)).key_used == key.id


@pytest.mark.parametrize("how", ["raises", "cancels", "a number", "hangs", "raises at once", "cancels at once"])
async def test_an_estimate_that_fails_is_told_where_a_hard_budget_needs_it(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(requests, "ESTIMATE_SECONDS_MAX", 0.1)
    async with routed(Own(estimate_cost=ASYNC[how])) as router:
        assert await quote(router) is None
        answer = await ask(router)
        assert (answer.cost, answer.metadata.cost, answer.metadata.cost_actual) == (None, None, None), "not 0"
        budget = await router.cost_controller.create_budget("global", 10)
        for door in (ask, stream):
            with pytest.raises(BudgetExceededError, match=r"'custom' \(Own\): estimate_cost (failed|returned)") as told:
                await door(router)
            tells_no_secret(told.value)
        status = await router.cost_controller.get_budget_status(budget.id)
        assert status.settled == status.held == 0


@pytest.mark.parametrize("bound", [None, "NaN", "Infinity", "-1", "1e30", "0.001"])
async def test_an_estimate_without_a_bound_that_can_be_held_is_told_as_such(bound: str | None) -> None:
    told = CostEstimate.made(amount=Decimal("0.01"), bound=None if bound is None else Decimal(bound))
    async with routed(Own(estimate_cost=giving(told))) as router:
        assert (await quote(router)).amount == Decimal("0.01")
        assert (await ask(router)).content == "answer"
        await router.cost_controller.create_budget("global", 10)
        with pytest.raises(BudgetExceededError, match="told no `bound` that can be held"):
            await ask(router)


async def test_a_full_flat_budget_says_that_it_is_full() -> None:
    async with routed(Own()) as router:
        await router.cost_controller.create_budget("global", "0.05", unpriced="flat", flat="0.02")
        assert [(await ask(router)).content for _ in range(2)] == ["answer"] * 2
        with pytest.raises(BudgetExceededError, match=r"no room for 0\.02 more dollars") as caught:
            await ask(router)
        assert "rule" not in str(caught.value)
        assert caught.value.details["needed"] == Decimal("0.02")


async def test_what_no_json_holds_reaches_no_adapter() -> None:
    own_adapter = Own(execute_request=fail)
    deep: dict[str, Any] = {}
    deep["self"] = deep
    wrong: list[tuple[str, dict[str, Any]]] = [
        (r"messages\[0\].content", {"messages": [{"role": "user", "content": "\ud800"}]}),
        (r"messages\[0\].content", {"messages": [{"role": "user", "content": [{"n": float("nan")}]}]}),
        (r"messages\[0\].content", {"messages": [{"role": "user", "content": [deep]}]}),
        (r"messages\[0\].content", {"messages": [{"role": "user", "content": [{"x": object()}]}]}),
        ("parameters.stop", {"parameters": {"stop": "\ud800"}}), ("parameters.f", {"parameters": {"f": object()}}),
        ("parameters.x", {"parameters": {"x": {float("nan")}}}), ("parameters.self", {"parameters": deep}),
        ("payload.x", {"operation": "http", "payload": {"x": "\ud800"}}), ("tags.a", {"tags": {"a": "\ud800"}}),
        ("team", {"team": "\ud800"}),
    ]  # fmt: skip
    async with routed(own_adapter) as router:
        for field, fields in wrong:
            for door in (router.route, router.cost_controller.estimate_request_cost, router.dry_run):
                with pytest.raises(InvalidRequestError, match=f"^{field}") as caught:
                    await door({**intent(), **fields})
                assert len(caught.value.field) < 40
        with pytest.raises(InvalidRequestError, match="client"):
            await router.lease("m", client="\ud800").__aenter__()


async def test_no_guess_is_a_way_out_for_a_model_that_somebody_was_told_to_serve() -> None:
    from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter

    async with routed(Own(execute_request=later(fail)), models=["our-model"]) as router:
        await router.register_provider("openai", OpenAIAdapter("http://127.0.0.1:1/v1"))
        guessing = await router.register_key("sk-another-key-material-0123456789", "openai")
        tried: list[str] = []
        router.on_finished.append(lambda facts: tried.extend(attempt.key_id for attempt in facts.attempts))
        with pytest.raises(ApiKeyRouterError):
            await router.route(intent(model="our-model"))
        assert tried
        assert guessing.id not in tried
        assert {option.key.id for option in router.catalogue.pool("gpt-next", None, "").options} == {guessing.id}
        assert {option.key.id for option in router.catalogue.pool("our-model", "openai", "").options} == {guessing.id}
