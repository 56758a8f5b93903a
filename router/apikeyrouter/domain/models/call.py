"""One request on the data plane, and what came of it: plain slotted data, no validation, no I/O."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from apikeyrouter.domain.models.accounting import Loss
from apikeyrouter.domain.models.ranking import Barred, Ranking
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer

if TYPE_CHECKING:
    from apikeyrouter.domain.models.policy import Policy
    from apikeyrouter.domain.models.request_intent import RequestIntent
    from apikeyrouter.domain.models.routing_decision import RoutingObjective
    from apikeyrouter.domain.models.system_response import SystemResponse
    from apikeyrouter.domain.models.wire import ParsedRequest


class Call(msgspec.Struct, kw_only=True):
    """One request to be served: `parsed` (a client's body in `dialect`), `intent` (the library), or both, where
    providers of other dialects may be asked as well: then the intent is what the body says.

    `operation`: what a wire calls it: chat, messages, generate, embedding, …. `provider_id` pins a provider.
    `headers`: those of the client that may go upstream, names in lower case; `path_query`: `?…` as it came.
    `started` and `deadline` are readings of `time.perf_counter()` in seconds; no attempt starts after the deadline.
    `told_costs`: by provider, what its own adapter expects the request to cost, and at most (UNPRICED: not told).
    `policy`: the request's own. `principal` shares fairly with others by `weight`; `lanes` are the client's own limits.
    `wait_ms`: how long it waits for room before it is denied, from its start; None: as the router is told. `priority`:
    its class among those that wait, 0 goes first. `ungated`: it may have what is kept for other principals.
    """

    request_id: str
    operation: str
    model: str
    stream: bool
    started: float
    dialect: str = ""
    parsed: "ParsedRequest | None" = None
    intent: "RequestIntent | None" = None
    provider_id: str | None = None
    objective: "RoutingObjective | None" = None
    policy: "Policy | None" = None
    team: str | None = None
    client: str | None = None
    principal: str = ""
    weight: float = 1
    lanes: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    path_query: str = ""
    session: str | None = None
    deadline: float | None = None
    wait_ms: int | None = None
    priority: int = 0
    ungated: bool = False
    group: str = ""
    """The only quota group that may serve it; "" : any."""
    told_costs: dict[str, tuple[int, int]] | None = None
    cost_doubts: dict[str, str] | None = None
    """By provider, what was wrong with what its own adapter told."""


class AttemptFacts(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One attempt: which key, what happened. Times in microseconds.

    `failure` is its category, `meaning` its row of the taxonomy of failures; both "" when it succeeded.
    `cost_nanousd`: what was booked for it (None: not known); `cost_estimated`: because nobody said what was used.
    `ranking`: the candidates it was chosen from, at `place`; `losses`: what the ledger had against those before it.
    `fault`: what was wrong with its answer (refused, empty, truncated, schema), where that was looked at.
    `asked_us`: from the call's start until capacity was asked for; `reserve_us`: until it was held. `expected_…`: what
    it was admitted for.
    """

    key_id: str
    provider_id: str
    model: str
    rid: bytes
    ranking: Ranking | None = None
    place: int = 0
    losses: tuple[Loss, ...] = ()
    probe: bool = False
    failure: str = ""
    fault: str = ""
    meaning: str = ""
    cost_nanousd: int | None = 0
    cost_estimated: bool = False
    status: int = 0
    upstream_us: int = 0
    asked_us: int = 0
    reserve_us: int = 0
    expected_input: int = 0
    expected_output: int = 0
    expected_nanousd: int = 0

    @property
    def candidates(self) -> tuple[str, ...]:
        """Ids of the keys that it was chosen from, in the order in which they were offered."""
        return () if self.ranking is None else tuple(standing.key_id for standing in self.ranking.standings)


class Refusal(msgspec.Struct, kw_only=True, gc=False):
    """Why nothing was held: the candidates, what the ledger had against each, and what constraints excluded."""

    ranking: Ranking
    losses: tuple[Loss, ...] = ()


class Facts(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What happened to one call: kept in a ring, rendered on demand.

    `cost_nanousd` and `usage` None: not known (yet: a stream's are set when it ends). The cost is that of all
    attempts: one that failed may have been billed, and then its estimate is in it; `cost_estimated` says that the whole
    or a part is an estimate. `usage` is the last attempt's. `token_cap`: the cap that was
    injected because a hard budget applies. `overhead_us`: time spent here, not upstream (of a stream that still
    runs: until its first event). `at_us`: Unix microseconds.
    `standby`: the store was away, and it was admitted from this worker's share. `slab`: the reservation for many calls
    that the last attempt has a part of.
    `waited_us`: time in the wait queue, which is in no other figure but the total.
    `outcome`: pending, ok, or a failure's category. `pinned`: the provider that was asked for. `policies`: those that
    applied; `barred`: what they refused; `yielded`: soft ones that were passed over, because
    nothing else was left; `shadowed`: (policy, refused) of shadows that would have refused it, or sent it elsewhere.
    """

    request_id: str
    operation: str
    model: str
    stream: bool
    objective: str
    team: str | None
    client: str | None
    at_us: int
    attempts: list[AttemptFacts] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    cost_nanousd: int | None = None
    cost_estimated: bool = False
    token_cap: int | None = None
    soft_exceeded: tuple[str, ...] = ()
    standby: bool = False
    slab: bytes = b""
    overhead_us: int = 0
    upstream_us: int = 0
    first_token_us: int = 0
    waited_us: int = 0
    total_us: int = 0
    snapshot_age_us: int = 0
    pinned: str | None = None
    dialect: str = ""
    policies: tuple[str, ...] = ()
    barred: tuple[Barred, ...] = ()
    yielded: tuple[str, ...] = ()
    shadowed: tuple[tuple[str, bool], ...] = ()
    denial: Loss | None = None
    refusal: Refusal | None = None
    outcome: str = "pending"
    finish_reason: str | None = None

    @property
    def key_id(self) -> str:
        """The key that served, or was tried last."""
        return self.attempts[-1].key_id if self.attempts else ""

    @property
    def model_used(self) -> str:
        """The model that served, or was tried last, by its provider's name."""
        return self.attempts[-1].model if self.attempts else self.model

    @property
    def provider_id(self) -> str:
        """The provider that served, or was tried last."""
        return self.attempts[-1].provider_id if self.attempts else ""


class Chunks(Protocol):
    """A streamed answer: bytes of the dialect, or StreamChunks of an adapter that is no wire."""

    def __aiter__(self) -> "Chunks":
        """Itself."""
        ...

    async def __anext__(self) -> Any:
        """The next piece. Raises ProviderError in mid-stream."""
        ...

    async def aclose(self) -> None:
        """Give up the rest. Idempotent."""
        ...


class PouredChunks(ABC):
    """`Chunks` that can be written while they arrive, without waking a task for every piece."""

    @abstractmethod
    async def pour(self, write: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """Write every piece as it comes; after one that `write` was short of room for (False), wait until `drained`.

        Ends, and raises, as iterating does.
        """


class ReadBody(msgspec.Struct):
    """A provider's body, read: `answer` in the words of chat. `raw`: as JSON, None where nobody gets to see it, or
    where it is no object."""

    answer: Answer
    raw: dict[str, Any] | None


class Exchange(msgspec.Struct, kw_only=True):
    """The answer to one call: `body` when complete, else `chunks`, each to be passed on as it comes.

    Iterating `chunks` to its end, or closing it (`aclose`), settles the request; one of both must happen. A failure
    in mid-stream is raised out of it as SystemError, after what was received.
    """

    status: int
    content_type: str
    facts: Facts
    body: bytes | None = None
    read: "ReadBody | None" = None
    """What `body` says, where it is not passed on as it is."""
    chunks: "Chunks | None" = None
    response: "SystemResponse | None" = None
    """Set instead of `body` by an adapter that is no wire."""
    provider: Any = None
    """Who gave it, as it was when it was asked: a `Provider` of the catalogue."""

    @property
    def wire(self) -> Any:
        """Whose dialect the answer is in; None: an adapter's that is no wire."""
        return None if self.provider is None else self.provider.wire
