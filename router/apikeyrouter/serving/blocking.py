"""`router.sync`: the router for code that is not async, from any number of threads.

Calls run on the router's event loop: the one that it was started on, if that runs in another thread, else one of this
facade's own, in a thread that ends with `close` or with the program.
"""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse
from apikeyrouter.serving.batches import Progress

__all__ = ["COMPONENTS", "BlockingRouter", "Routes"]

LOOK_SECONDS = 0.5
"""How often a waiting caller looks whether the loop still runs."""
AT_EXIT_SECONDS_MAX = 5.0
COMPONENTS = (
    "key_manager", "cost_controller", "quota_awareness_engine", "routing_engine", "failure_handler", "policy_engine",
    "configuration_manager",
)  # fmt: skip
T = TypeVar("T")
Intent = RequestIntent | Mapping[str, Any]


class Routes(Protocol):
    """What is asked of a router. The rest is looked up by name."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to."""
        ...

    async def start(self) -> None:
        """Connect."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class BlockingRouter:
    """Every method of the router, blocking: `router.sync.route(intent)`. Usable from many threads at once.

    Its components too: `router.sync.key_manager.get_key(id)`. What is awaited on the router returns its result here,
    and async iterators become plain ones. A context manager, which closes the router.

    Errors: those of the router, and ConfigurationError where waiting would never end: on the router's own event loop,
    or while that loop stands still.
    """

    def __init__(self, router: Routes) -> None:
        self._router: Any = router
        self._lock = threading.Lock()
        self._own: _LoopThread | None = None

    def route(
        self, request_intent: Intent, objective: RoutingObjective | str | None = None, **more: Any
    ) -> SystemResponse:
        """Route one request and return its answer."""
        answer: SystemResponse = self.call(self._router.route, request_intent, objective, **more)
        return answer

    def route_stream(
        self, request_intent: Intent, objective: RoutingObjective | str | None = None, **more: Any
    ) -> Iterator[StreamChunk]:
        """Yield the answer in pieces. Leaving early closes the stream, and what was received is charged."""
        return self.iterate(self._router.route_stream(request_intent, objective, **more))

    def route_batch(
        self, intents: Iterable[Intent], objective: RoutingObjective | str | None = None, *, concurrency: int = 8,
        on_progress: Progress | None = None, return_exceptions: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Route many requests at once; their answers in order."""
        answers: list[Any] = self.call(
            self._router.route_batch, intents, objective, concurrency=concurrency, on_progress=on_progress,
            return_exceptions=return_exceptions,
        )  # fmt: skip
        return answers

    def register_provider(self, provider_id: Any, adapter: ProviderAdapter, overwrite: bool = False) -> None:
        """Register a provider's adapter under an id."""
        self.call(self._router.register_provider, provider_id, adapter, overwrite)

    def register_key(self, key_material: str, provider_id: str, metadata: dict[str, Any] | None = None) -> APIKey:
        """Register a key; the same material and provider give the same key."""
        key: APIKey = self.call(self._router.register_key, key_material, provider_id, metadata)
        return key

    @contextmanager
    def lease(self, model: str, **options: Any) -> Iterator[Any]:
        """Hold a key for a call of your own; the lease's methods block until they are booked. See `router.lease`."""
        leasing = self._router.lease(model, **options)
        lease = self.call(leasing.__aenter__)
        try:
            yield _Component(lease, self)
        except BaseException as exc:
            self.call(leasing.__aexit__, type(exc), exc, exc.__traceback__)
            raise
        self.call(leasing.__aexit__, None, None, None)

    def close(self) -> None:
        """Close the router, and end the thread that this facade started. Idempotent."""
        if self._router.loop is not None:
            self.call(self._router.close)
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.stop()

    def __enter__(self) -> Self:
        self.call(self._router.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Any other method of the router, or a component."""
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._router, name)
        return _Component(found, self) if name in COMPONENTS else _method(found, self)

    def close_at_exit(self) -> None:
        """The program ends: book what is not booked yet, if this facade's loop is still there. Leases end the rest."""
        own = self._own
        if own is None or not own.loop.is_running():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._router.close(), own.loop).result(AT_EXIT_SECONDS_MAX)
        except (ApiKeyRouterError, OSError, RuntimeError, TimeoutError):
            return

    def forget_thread(self) -> object:
        """After a fork: the thread stayed in the parent. What must be kept from its end."""
        own, self._own, self._lock = self._own, None, threading.Lock()
        return own

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call any function on the router's event loop, and wait for what it promises."""

        async def call() -> Any:
            told = function(*args, **options)
            return await told if inspect.isawaitable(told) else told

        loop = self._target()
        return _waited(call(), loop)

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """An async iterator of the router's as a plain one, closed at its end or where it is left."""
        loop = self._target()
        try:
            while (step := _waited(_step(source), loop)) is not None:
                yield step[0]
        finally:
            if loop.is_running():
                _waited(_closed(source), loop)

    # --- the rim -------------------------------------------------------------------------------------------------

    def _target(self) -> asyncio.AbstractEventLoop:
        """The loop to call on."""
        loop: asyncio.AbstractEventLoop | None = self._router.loop
        if loop is None or loop.is_closed():
            loop = self._own_loop()
        elif not loop.is_running():
            raise ConfigurationError(
                "the router was started on an event loop that stands still; close it there before you use router.sync"
            )
        if _running_here() is loop:
            raise ConfigurationError("router.sync would wait for itself here: on the router's event loop, use await")
        return loop

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._own is None or self._own.loop.is_closed():
                self._own = _LoopThread()
            return self._own.loop


class _Component:
    """A component of the router, its methods blocking."""

    def __init__(self, target: Any, facade: BlockingRouter) -> None:
        self._target, self._facade = target, facade

    def __getattr__(self, name: str) -> Any:
        return _method(getattr(self._target, name), self._facade)


class _LoopThread:
    """An event loop that runs in a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        running = threading.Event()
        self.loop.call_soon(running.set)
        self._thread = threading.Thread(target=self._run, name="apikeyrouter.sync", daemon=True)
        self._thread.start()
        running.wait()

    def stop(self) -> None:
        """End loop and thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.get_loop().run_forever()


def _method(found: Any, facade: BlockingRouter) -> Any:
    """A method that blocks; what is no method stays as it is."""
    if inspect.isasyncgenfunction(found):
        return lambda *args, **options: facade.iterate(found(*args, **options))
    return (lambda *args, **options: facade.call(found, *args, **options)) if inspect.isroutine(found) else found


def _waited(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """The result of `work` on a loop that runs in another thread."""
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        while True:
            try:
                return future.result(LOOK_SECONDS)
            except TimeoutError:
                if future.done():
                    return future.result()
                if not loop.is_running():
                    raise ConfigurationError("the router's event loop stopped before the call had ended") from None
    except BaseException:
        future.cancel()
        raise


async def _step(source: AsyncIterator[T]) -> tuple[T] | None:
    try:
        return (await anext(source),)
    except StopAsyncIteration:
        return None


async def _closed(source: AsyncIterator[Any]) -> None:
    closing = getattr(source, "aclose", None)
    if closing is not None:
        await closing()


def _running_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
