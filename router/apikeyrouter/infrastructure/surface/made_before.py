"""What a provider keeps for its clients, and who may ask about it: the organisation that made it, and the client that
had it made.
"""

import re
from collections import OrderedDict
from typing import NamedTuple

import msgspec
import structlog

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.call import Call, Chunks, Exchange, Facts
from apikeyrouter.domain.models.system_error import InvalidRequestError, StateStoreError
from apikeyrouter.domain.models.wire import ParsedRequest
from apikeyrouter.infrastructure.adapters.json_body import JsonError, read_word
from apikeyrouter.infrastructure.surface.problems import refuse
from apikeyrouter.infrastructure.surface.translating import in_own_words

__all__ = ["MadeBefore", "Origin", "pin"]

KIND = "made"
KEPT_SECONDS = 30 * 24 * 3600
"""How long OpenAI keeps a response (API reference, November 2026)."""
OWN_MAX = 10_000
"""Origins that a process remembers by itself."""
ID_LENGTH_MAX = 256
_BEGUN = re.compile(rb'"response"\s*:\s*\{[^{}]*?"id"\s*:\s*"([^"\\]{1,256})"')
_log = structlog.get_logger("apikeyrouter")


class Origin(NamedTuple):
    """Where something was made, and for whom ("" : no client in particular)."""

    provider_id: str
    quota_group: str
    model: str
    client: str


class _Made(msgspec.Struct, gc=False):
    id: str | None = None


class _Conversation(msgspec.Struct, gc=False):
    id: str = ""


_MADE = msgspec.json.Decoder(_Made)
_CONVERSATION = msgspec.json.Decoder(str | _Conversation | None)


class MadeBefore:
    """Remembers origins: in the store, for every process on it; where that keeps no notes, in this process."""

    def __init__(self, store: StateStore, catalogue: Catalogue) -> None:
        self._store, self._catalogue = store, catalogue
        self._own: OrderedDict[str, Origin] = OrderedDict()

    async def origin(
        self, parsed: ParsedRequest, client: str | None, query: bytes
    ) -> tuple[ParsedRequest, Origin | None]:
        """A request with what its origin tells, and that origin: None for one that goes on from nothing.

        Raises:
            RequestRefused: 404 or 400, what it names was not made here, or another client had it made.
            InvalidRequestError: it names no id.
        """
        if not parsed.resource:
            return parsed, await self._gone_on_from(parsed, client)
        origin = await self._find(parsed.resource, client)
        if origin is None:
            message = f"{parsed.resource[:100]!r} was not found; it is known for 30 days to the client that had it made"
            raise refuse(404, "invalid_request_error", "not_found", message)
        stream = b"stream=true" in query.split(b"&")
        return msgspec.structs.replace(parsed, model=origin.model, stream=stream), origin

    async def _gone_on_from(self, parsed: ParsedRequest, client: str | None) -> Origin | None:
        for name, told in _referred(parsed).items():
            origin = await self._find(told, client)
            if origin is None:
                message = f"{name} {told[:100]!r} was not found; it is known for 30 days to the client that had it made"
                raise refuse(400, "invalid_request_error", f"{name}_not_found", message)
            return origin
        return None

    async def note(self, exchange: Exchange, call: Call) -> Exchange:
        """Remember what a call made: of a stream once its id has come, before that is passed on."""
        if call.parsed is None or bytes(call.parsed.fields.get("store", b"")) == b"false":
            return exchange
        if not in_own_words(exchange, call):
            return exchange  # a translated response is kept nowhere
        if exchange.chunks is not None:
            exchange.chunks = _NotedStream(exchange.chunks, self, call, exchange.facts)
        elif exchange.body is not None:
            await self._note(_made_id(exchange.body), call, exchange.facts)
        return exchange

    async def begun(self, piece: bytes, call: Call, facts: Facts) -> None:
        """Remember what the first events of a stream name."""
        found = _BEGUN.search(piece)
        await self._note(None if found is None else found.group(1).decode("utf-8", "replace"), call, facts)

    async def _note(self, made_id: str | None, call: Call, facts: Facts) -> None:
        key = self._catalogue.keys.get(facts.key_id)
        if not made_id or len(made_id) > ID_LENGTH_MAX or key is None:
            return
        origin = Origin(facts.provider_id, key.quota_group, call.model, call.client or "")
        self._own[made_id] = origin
        if len(self._own) > OWN_MAX:
            self._own.popitem(last=False)
        try:
            await self._store.save_note(KIND, made_id, origin._asdict(), seconds=KEPT_SECONDS)
        except NotImplementedError:
            return
        except StateStoreError as exc:  # it was made, and paid for: the answer goes out all the same
            _log.warning("response.not_noted", request_id=call.request_id, error=str(exc))

    async def _find(self, made_id: str, client: str | None) -> Origin | None:
        origin = self._own.get(made_id)
        if origin is None and len(made_id) <= ID_LENGTH_MAX:
            told = await self._store.get_note(KIND, made_id)
            origin = None if told is None else Origin(**{name: str(told.get(name, "")) for name in Origin._fields})
        return origin if origin is not None and origin.client == (client or "") else None


class _NotedStream:
    """A stream whose first piece tells what is being made."""

    def __init__(self, chunks: Chunks, made: MadeBefore, call: Call, facts: Facts) -> None:
        self._chunks, self._made, self._call, self._facts = chunks, made, call, facts
        self._noted = False

    def __aiter__(self) -> "_NotedStream":
        return self

    async def __anext__(self) -> bytes:
        piece: bytes = await self._chunks.__anext__()
        if not self._noted:
            self._noted = True
            await self._made.begun(piece, self._call, self._facts)
        return piece

    async def aclose(self) -> None:
        """Give up the rest. Idempotent."""
        await self._chunks.aclose()


def pin(call: Call, origin: Origin) -> None:
    """Let nobody but the origin's organisation serve the call. Raises InvalidRequestError."""
    if call.provider_id not in (None, origin.provider_id):
        raise InvalidRequestError(f"what this goes on from was made at {origin.provider_id!r}", field="x-akr-provider")
    call.provider_id, call.group = origin.provider_id, origin.quota_group


def _made_id(body: bytes) -> str | None:
    try:
        return _MADE.decode(body).id
    except JsonError:
        return None


def _referred(parsed: ParsedRequest) -> dict[str, str]:
    """What a request goes on from, by member. Raises InvalidRequestError."""
    found: dict[str, str] = {}
    if "previous_response_id" in parsed.fields:
        found["previous_response"] = read_word(parsed.fields, "previous_response_id") or ""
    if "conversation" in parsed.fields:
        try:
            told = _CONVERSATION.decode(parsed.fields["conversation"])
        except JsonError as exc:
            raise InvalidRequestError("must be an id", field="conversation") from exc
        found["conversation"] = told.id if isinstance(told, _Conversation) else told or ""
    return {name: told for name, told in found.items() if told}
