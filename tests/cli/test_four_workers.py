"""The official SDKs, unmodified, against a running service with four workers."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.cli.processes import clean_environ, hear, running, wait_until
from tests.cli.test_commands import COMMAND, simulator

ROUNDS = 6
ADMIN_KEY = "admin-key-of-the-test"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _config(directory: Path, url: str) -> Path:
    path = directory / "router.yaml"
    path.write_text(
        f"providers:\n  openai: {{adapter: openai, base_url: '{url}/v1'}}\n"
        f"  anthropic: {{adapter: anthropic, base_url: '{url}'}}\n"
        "keys:\n"
        "  - {id: o1, provider: openai, key: sk-sim-alpha-1, quota_group: alpha}\n"
        "  - {id: o2, provider: openai, key: sk-sim-beta-1, quota_group: beta}\n"
        "  - {id: a1, provider: anthropic, key: sk-ant-sim-gamma-1, quota_group: gamma}\n"
        "budgets:\n  - {name: all, scope: global, limit_usd: 100, period: daily, enforcement: soft}\n"
    )
    return path


def _openai_chat(openai: OpenAI, _: Anthropic) -> bool:
    made = openai.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])
    return bool(made.choices[0].message.content)


def _openai_stream(openai: OpenAI, _: Anthropic) -> bool:
    stream = openai.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=12, stream=True
    )
    pieces = [chunk.choices[0] for chunk in stream]
    return bool("".join(piece.delta.content or "" for piece in pieces)) and pieces[-1].finish_reason is not None


def _openai_tools(openai: OpenAI, _: Anthropic) -> bool:
    made = openai.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": "weather?"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    calls = made.choices[0].message.tool_calls or []
    return calls[0].type == "function" and "city" in json.loads(calls[0].function.arguments)


def _openai_image(openai: OpenAI, _: Anthropic) -> bool:
    parts: Any = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    return bool(openai.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}]).usage)


def _anthropic_message(_: OpenAI, anthropic: Anthropic) -> bool:
    made = anthropic.messages.create(
        model="claude-sonnet-5", max_tokens=20, messages=[{"role": "user", "content": "hello"}]
    )
    return made.content[0].type == "text"


def _anthropic_stream_tools(_: OpenAI, anthropic: Anthropic) -> bool:
    with anthropic.messages.stream(
        model="claude-sonnet-5",
        max_tokens=60,
        messages=[{"role": "user", "content": "weather?"}],
        tools=[{"name": "weather", "input_schema": SCHEMA}],
        tool_choice={"type": "tool", "name": "weather"},
    ) as stream:
        return stream.get_final_message().content[0].type == "tool_use"


def _anthropic_image(_: OpenAI, anthropic: Anthropic) -> bool:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    parts: Any = [{"type": "text", "text": "what is it?"}, {"type": "image", "source": source}]
    made = anthropic.messages.create(
        model="claude-sonnet-5", max_tokens=20, messages=[{"role": "user", "content": parts}]
    )
    return made.stop_reason is not None


CALLS: tuple[Callable[[OpenAI, Anthropic], bool], ...] = (
    _openai_chat, _openai_stream, _openai_tools, _openai_image, _anthropic_message, _anthropic_stream_tools,
    _anthropic_image,
)  # fmt: skip


@pytest.mark.timeout(180)
def test_unmodified_sdks_are_served_by_four_workers_and_the_books_equal_the_bill(tmp_path: Path) -> None:
    with simulator(tmp_path) as url:
        arguments = [*COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", "--workers", "4", "--json"]
        arguments += ["--config", str(_config(tmp_path, url)), "--data-dir", str(tmp_path / "data")]
        with running(arguments, cwd=tmp_path, environ=clean_environ(MANAGEMENT_API_KEY=ADMIN_KEY)) as process:
            told = hear(process, "listening")
            assert len(told["workers"]) == 4

            def call(number: int) -> bool:
                make = CALLS[number % len(CALLS)]
                with (
                    OpenAI(base_url=told["url"] + "/v1", api_key="any", max_retries=0) as openai,
                    Anthropic(base_url=told["url"], api_key="any", max_retries=0) as anthropic,
                ):
                    return make(openai, anthropic)

            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(call, range(ROUNDS * len(CALLS))))
            wait_until(lambda: _billed(url)["in_flight"] == 0)
            seen = _billed(url)
            assert (seen["arrived"], seen["over_limit"]) == (ROUNDS * len(CALLS), 0)
            expected = {
                "requests_total": ROUNDS * len(CALLS), "settlements_total": ROUNDS * len(CALLS),
                "cost_nanousd_total": seen["cost_nanousd"], "workers": 4,
            }  # fmt: skip
            wait_until(lambda: {name: _samples(told["url"], f"apikeyrouter_{name}") for name in expected} == expected)
            _kill_one_and_see_it_lost(told)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def _kill_one_and_see_it_lost(told: dict[str, Any]) -> None:
    """A worker that is killed is told of as lost within seconds, and whoever takes its place as there."""

    def states() -> dict[int, str]:
        answer = httpx.get(told["url"] + "/api/v1/workers", headers={"X-API-Key": ADMIN_KEY}, timeout=10)
        return {one["pid"]: one["state"] for one in answer.json()["workers"]}

    wait_until(lambda: states() == dict.fromkeys(told["workers"], "normal"))
    victim = told["workers"][0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: (states().get(victim), list(states().values()).count("normal")) == ("lost", 4))


def _billed(simulator_url: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(simulator_url + "/_sim/report", timeout=10).json()["total"]
    return told


def _samples(url: str, name: str) -> int:
    rows = httpx.get(url + "/metrics", timeout=10).text.splitlines()
    return sum(int(float(row.rpartition(" ")[2])) for row in rows if row.partition("{")[0].partition(" ")[0] == name)
