"""The management plane against its own description: whatever fits it, and what does not, gets a described answer."""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.running import MANAGEMENT_KEY, Running

pytestmark = pytest.mark.asyncio(loop_scope="package")

EXAMPLES = 20
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


def _try_all(url: str) -> tuple[int, list[str]]:
    """How many requests were made, and what was wrong with the answers."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried, wrong = 0, []
    for found in schema.include(tag="management").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            nonlocal tried
            case.headers["X-API-Key"] = MANAGEMENT_KEY
            answer = case.call(timeout=30)
            case.validate_response(answer, checks=list(CHECKS))
            tried += 1

        try:
            one()
        except FailureGroup as exc:
            wrong.append("; ".join(str(failure) for failure in exc.exceptions))
    return tried, wrong


async def test_every_answer_is_described_and_none_is_a_crash(service: Running) -> None:
    async with service.operator() as operator:
        await operator.post("/api/v1/clients", json={"name": "app"})
        await operator.post("/api/v1/budgets", json={"scope": "global", "limit_usd": 5})
    tried, wrong = await asyncio.to_thread(_try_all, service.url)
    assert wrong == []
    assert tried > 300
