"""A process with a router of its own, which does what it reads line by line and answers each with a line of JSON.

`python -m tests.router.keyholder REDIS_URL OPENAI_URL MASTER_KEYS`. Lines: `keys` (id → state and generation, as
routing sees them), `route` (the key that served, or the error), `register MATERIAL`, `update KEY STATE`, `end`.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from apikeyrouter import ApiKeyRouter, ApiKeyRouterError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.router.house import intent

ANSWER = b"answer: "
"""What tells an answer from the log, which the library leaves to whoever runs it."""


class Keyholder:
    """The other end: a child that is told lines and answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, *words: str) -> Any:
        """What the child answers to one line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        await self._process.stdin.drain()
        while line := await self._process.stdout.readline():
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(f"the child ended at {words}")


@contextlib.asynccontextmanager
async def keyholder(redis_url: str, openai_url: str, master_keys: str) -> AsyncIterator[Keyholder]:
    """A child that is up; told to end at exit."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.router.keyholder", redis_url, openai_url, master_keys,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    made = Keyholder(process)
    try:
        assert await made.ask("keys") is not None
        yield made
        await made.ask("end")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def obey(redis_url: str, openai_url: str, master_keys: str) -> None:
    """Answer line after line."""
    router = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": master_keys})
    router.register_provider("openai", OpenAIAdapter(openai_url))
    async with router:
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            print(ANSWER.decode() + json.dumps(await _answer(router, *words)), flush=True)
            if words == ["end"]:
                return


async def _answer(router: ApiKeyRouter, command: str, *arguments: str) -> Any:
    try:
        match command:
            case "keys":
                keys = router.catalogue.keys.values()
                return {key.id: [key.state.value, key.generation] for key in keys}
            case "route":
                return (await router.route(intent())).key_used
            case "register":
                return (await router.register_key(arguments[0], "openai")).id
            case "update":
                entry = await router.key_manager.update_key_state(*arguments)
                return entry.to_state.value if entry.to_state else None
        return None
    except ApiKeyRouterError as exc:
        return {"error": type(exc).__name__}


if __name__ == "__main__":
    asyncio.run(obey(*sys.argv[1:]))
