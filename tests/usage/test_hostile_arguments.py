"""Every public method of the library, each of its arguments wrong in every way: an answer, or an error that says so."""

import asyncio
import inspect
import math
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouterError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house, intent

pytestmark = pytest.mark.asyncio(loop_scope="package")
HOSTILE: dict[str, Any] = {
    "None": None, "int": 5, "negative": -1, "huge": 2**60, "float": 1.5, "nan": math.nan, "infinite": math.inf,
    "empty": "", "unknown": "nobody", "surrogate": "\ud800", "control": "a\x00\nb", "long": "x" * 5000, "bytes": b"x",
    "true": True, "list": [], "list of int": [5], "list of None": [None], "list of text": ["nobody"], "dict": {},
    "dict of int": {"x": 5}, "dict by int": {5: "x"}, "set": {1}, "object": object(), "class": int, "function": len,
    "naive": datetime(2026, 1, 1), "not a number": Decimal("NaN"), "error": ValueError("x"),  # noqa: DTZ001
}  # fmt: skip
COMPONENTS = (
    "", "key_manager", "cost_controller", "quota_awareness_engine", "routing_engine", "failure_handler",
    "policy_engine", "configuration_manager", "observability_manager",
)  # fmt: skip
POLICY = {"name": "p", "rules": {"max_cost_per_request": 1}}
MATERIAL, AMOUNT = "sk-sim-house-a-number-2", Decimal("0.01")
SANE: dict[str, Any] = {
    "key_id": "a1", "key_ids": ["a1"], "old_key_id": "a1", "eligible_keys": ["a1"], "keys": [], "provider_id": "openai",
    "key_material": MATERIAL, "new_key_material": MATERIAL, "adapter": OpenAIAdapter("http://127.0.0.1:1/v1"),
    "request_intent": intent(), "intent": intent(), "intents": [intent()], "request": intent(), "objective": "cost",
    "model": "gpt-4o-mini", "models": {}, "reason": "because", "state": "throttled", "new_state": "throttled",
    "policy": POLICY, "policies": [POLICY], "policy_id": "p", "context": {}, "scope": "global", "limit": 10,
    "budget_id": "global:all", "mode": "hard", "amount": AMOUNT, "estimated_cost": AMOUNT, "estimated": AMOUNT,
    "actual": AMOUNT, "actual_cost": AMOUNT, "time_window": "daily", "total_capacity": 1000, "lane_id": "k:a1",
    "event_type": "*", "callback": print, "name": "mine", "value": 1.0, "scorer": len, "success": True, "attempt": 1,
    "error": ValueError("x"), "config": {"max_decisions": 5}, "key": "max_decisions", "edit": lambda quotas: quotas,
    "decision_or_request_id": "req_1", "request_id": "req_1", "decision_id": "req_1", "decision": None,
    "failure": None, "transition": None, "response": None, "client": None, "limits": None, "provider": None,
}  # fmt: skip
LEFT_OUT = {
    "close", "start", "ready", "drain", "sync", "apply", "foresee", "count_tokens", "serve",  # of the service
    "learn", "learn_broken", "learn_success", "goes_on", "hear", "plan", "constraints", "count", "held_in", "take_file",
    "attach", "emit", "finished", "flush", "moved", "take_level", "lost", "forget_threads",  # of the router itself
}  # fmt: skip
CALLED_BY_US = {("get_eligible_keys", "policy", "class"), ("get_eligible_keys", "policy", "function"),
                ("edit_quotas", "edit", "class"), ("edit_quotas", "edit", "function")}  # fmt: skip
"""Functions of the caller's own, whose errors are the caller's."""
METHODS_MIN = {"": 15, "key_manager": 12, "cost_controller": 9, "quota_awareness_engine": 6, "failure_handler": 6}


def public(component: object) -> Iterator[tuple[str, inspect.Signature]]:
    """The public methods of a component that take something."""
    for name in dir(type(component)):
        found = inspect.getattr_static(type(component), name)
        if not name.startswith("_") and name not in LEFT_OUT and inspect.isfunction(found):
            signature = inspect.signature(getattr(component, name))
            if signature.parameters:
                yield name, signature


async def outcome(method: Any, arguments: dict[str, Any]) -> object:
    """What became of a call: its answer, or its error."""
    try:
        told = method(**arguments)
        if hasattr(told, "__aenter__"):
            async with told:
                return "entered"
        if inspect.isasyncgen(told):
            return [piece async for piece in told]
        return await asyncio.wait_for(told, 20) if inspect.isawaitable(told) else told
    except BaseException as exc:
        return exc


def named(signature: inspect.Signature) -> list[str]:
    """The arguments that have names."""
    return [one.name for one in signature.parameters.values() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]


def needed(signature: inspect.Signature) -> list[str]:
    """Those that must be given."""
    return [name for name in named(signature) if signature.parameters[name].default is inspect.Parameter.empty]


def is_ours(found: object) -> bool:
    """Whether an outcome is documented: an answer, or an error of ours that says something."""
    return not isinstance(found, BaseException) or (isinstance(found, ApiKeyRouterError) and bool(str(found)))


@pytest.mark.parametrize("name", COMPONENTS, ids=lambda name: name or "router")
async def test_no_argument_is_too_wrong(simulator: SimulatorProcess, name: str) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        component: Any = getattr(made.router, name) if name else made.router
        methods = dict(public(component))
        assert len(methods) >= METHODS_MIN.get(name, 1)
        lacking = {one for signature in methods.values() for one in needed(signature)} - SANE.keys()
        assert not lacking, "tell this test what they are when they are right"
        found: dict[str, object] = {}
        for method, signature in methods.items():
            right = {one: SANE[one] for one in needed(signature)}
            for wrong in named(signature):
                for how, value in HOSTILE.items():
                    if (method, wrong, how) not in CALLED_BY_US:
                        call = f"{method}({wrong}={how})"
                        found[call] = await outcome(getattr(component, method), {**right, wrong: value})
        assert {call: repr(one) for call, one in found.items() if not is_ours(one)} == {}
        assert len(found) > 20 * len(methods)


async def test_after_all_of_it_nothing_is_held(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        for method in ("route", "route_stream", "route_batch", "lease", "dry_run"):
            signature = inspect.signature(getattr(made.router, method))
            right = {one: SANE[one] for one in needed(signature)}
            for wrong in named(signature):
                for value in HOSTILE.values():
                    await outcome(getattr(made.router, method), {**right, wrong: value})
        assert (await made.route()).key_used in ("a1", "b1")
        assert await made.at_rest() > 0
