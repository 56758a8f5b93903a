"""The simulated provider as a whole: who asks for what, in which dialect, and the state that a reset renews."""

from __future__ import annotations

from typing import Any

from apikeyrouter.simulator import openai_responses
from apikeyrouter.simulator.anthropic_dialect import AnthropicDialect
from apikeyrouter.simulator.anthropic_errors import ANTHROPIC_FAILURES
from apikeyrouter.simulator.calls import Call, Context, Dialect, InvalidRequest, Reply, make_id
from apikeyrouter.simulator.clock import NS_PER_SECOND, ProviderClock
from apikeyrouter.simulator.compatible_dialects import (
    AzureDialect,
    DeepSeekDialect,
    GroqDialect,
    MistralDialect,
    OpenRouterDialect,
)
from apikeyrouter.simulator.compatible_errors import COMPATIBLE_FAILURES
from apikeyrouter.simulator.config import Config, KeyConfig, OrganisationConfig
from apikeyrouter.simulator.exchange import Exchange, resolve_failure_name
from apikeyrouter.simulator.failures import ALIASES, WIRE_FAILURES, Failure, FailureRules
from apikeyrouter.simulator.gemini_dialect import GeminiDialect
from apikeyrouter.simulator.gemini_errors import GEMINI_FAILURES
from apikeyrouter.simulator.http_server import Connection, Request
from apikeyrouter.simulator.limits import InFlight
from apikeyrouter.simulator.openai_dialect import OpenAIDialect
from apikeyrouter.simulator.openai_errors import OPENAI_FAILURES
from apikeyrouter.simulator.organisations import Key, Organisation
from apikeyrouter.simulator.report import Journal, JournalEntry, sum_tallies

__all__ = ["FAILURE_NAMES", "SimulatedProviders"]

OPEN_KEYS_MAX = 1_000
_OPENAI: Dialect = OpenAIDialect()
_ANTHROPIC: Dialect = AnthropicDialect()
_GEMINI: Dialect = GeminiDialect()
_AZURE: Dialect = AzureDialect()
_DIALECTS: tuple[Dialect, ...] = (
    _OPENAI, _ANTHROPIC, _GEMINI, _AZURE, GroqDialect(), MistralDialect(), DeepSeekDialect(), OpenRouterDialect(),
)  # fmt: skip
_BY_PATH: dict[str, Dialect] = {path: dialect for dialect in _DIALECTS for path in dialect.paths}
_OPENAI_PREFIX = "/v1"
_BY_PATTERN = (_GEMINI, _AZURE)
"""Dialects with names in their paths."""
_BY_MODELS_PATH: dict[str, Dialect] = {dialect.models_path: dialect for dialect in reversed(_DIALECTS)}
_TOLD_BY_HEADER = ((b"anthropic-version", _ANTHROPIC), (b"x-goog-api-key", _GEMINI))
"""Who else lists models where OpenAI does: a header tells them apart."""

FAILURE_NAMES = frozenset(
    {
        *WIRE_FAILURES, *ALIASES, *OPENAI_FAILURES, *ANTHROPIC_FAILURES, *GEMINI_FAILURES,
        *(name for rows in COMPATIBLE_FAILURES.values() for name in rows), "request_too_large_html", "prompt_blocked",
    }
)  # fmt: skip
"""Every failure that can be asked for."""


def _listing_of(request: Request) -> tuple[Dialect, str | None] | None:
    """The dialect whose models are asked for, and which of them (None: all); None for any other path."""
    for path, dialect in _BY_MODELS_PATH.items():
        if request.path == path or request.path.startswith(path + "/"):
            if dialect is _OPENAI:
                dialect = next((other for name, other in _TOLD_BY_HEADER if name in request.headers), _OPENAI)
            return dialect, request.path[len(path) + 1 :] or None
    return None


class SimulatedProviders:
    """All organisations of one process; ``handle`` is the HTTP server's handler for the providers' own paths."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = ProviderClock(offset_ns=int(config.clock_offset_seconds * NS_PER_SECOND))
        self._serial = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything: counters, limits used, journal, failures and settings made at run time."""
        config = self.config
        self.since_ns = self.clock.now_ns()
        self.total = InFlight()
        self.unauthenticated = 0
        self.journal = Journal(config.journal_length)
        self.failures = FailureRules(config.failures, seed=config.seed)
        self.organisations = {item.id: self._make(item) for item in config.organisations}
        self._keys = {
            (organisation.dialect, key.material): key
            for organisation in self.organisations.values()
            for key in organisation.keys
        }

    def _make(self, config: OrganisationConfig) -> Organisation:
        return Organisation(
            config, prices=self.config.prices, seed=self.config.seed, now_ns=self.since_ns, total=self.total
        )

    # --- requests
    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request on a provider's path."""
        found = _BY_PATH.get(request.path)
        listing = None
        stored = openai_responses.STORED.fullmatch(request.path.removeprefix(_OPENAI_PREFIX)) if found is None else None
        if found is None:
            found = next((dialect for dialect in _BY_PATTERN if dialect.serves(request.path)), None)
        if found is None:
            listing = _listing_of(request)
        dialect = found or (listing[0] if listing is not None else _OPENAI)
        context = self._context(dialect)
        expected = "GET" if listing is not None else "POST"
        if stored is None and (request.method != expected or (found is None and listing is None)):
            reply = dialect.invalid(f"Unknown request URL: {request.method} {request.path}.", context)
            self._respond(connection, dialect, context, reply._replace(status=404))
            return
        material = dialect.key_material(request)
        context.material = material or ""
        key = self._authenticate(dialect, material)
        if key is None or key.disabled:
            self._refuse_key(connection, dialect, context, key)
            return
        context.key, context.organisation = key, key.organisation
        if stored is not None:
            seen = openai_responses.view(request.method, stored[1], stored[2], key.organisation)
            self._respond(connection, dialect, context, seen or dialect.invalid("No such request.", context))
            return
        if listing is not None:
            self._respond(connection, dialect, context, dialect.models(key.organisation, listing[1], context))
            return
        self._generate(request, connection, dialect, context, key)

    def _generate(self, request: Request, connection: Connection, dialect: Dialect, context: Context, key: Key) -> None:
        try:
            call = dialect.parse(request)
        except InvalidRequest as error:
            key.tally.arrived += 1
            key.tally.reject("invalid")
            self._respond(connection, dialect, context, dialect.invalid(str(error), context))
            return
        context.model = call.model
        if call.previous and call.previous not in key.organisation.responses:
            key.tally.arrived += 1
            key.tally.reject("invalid")
            self._respond(connection, dialect, context, openai_responses.unknown(call.previous, status=400))
            return
        if call.endpoint == "count_tokens":
            self._respond(connection, dialect, context, Reply(200, dialect.body(call, context)))
            return
        key.tally.arrived += 1
        Exchange(
            dialect=dialect,
            call=call,
            key=key,
            context=context,
            connection=connection,
            clock=self.clock,
            entry=self._journal(request, context, key, call),
            failure=self._choose_failure(request, call, key),
        ).begin()

    def _choose_failure(self, request: Request, call: Call, key: Key) -> Failure | None:
        failure = self.failures.choose(call, key, request.header(b"x-sim-fail"))
        if failure is None:
            return None
        return failure._replace(name=resolve_failure_name(failure.name, key.organisation.dialect))

    def _journal(self, request: Request, context: Context, key: Key, call: Call) -> JournalEntry:
        entry = JournalEntry(
            at_ns=context.now_ns,
            request_id=context.request_id,
            client_request_id=request.header(b"x-request-id") or request.header(b"x-client-request-id"),
            organisation=key.organisation.id,
            key=key.id,
            model=call.model,
            stream=call.stream,
        )
        self.journal.add(entry)
        return entry

    def _context(self, dialect: Dialect) -> Context:
        self._serial += 1
        return Context(make_id("req_", self._serial), self._serial, self.clock.now_ns())

    def _respond(self, connection: Connection, dialect: Dialect, context: Context, reply: Reply) -> None:
        connection.respond(reply.status, reply.headers + dialect.headers(context, processing_ms=1), reply.body)

    # --- keys
    def _authenticate(self, dialect: Dialect, material: str | None) -> Key | None:
        if material is None:
            return None
        key = self._keys.get((dialect.name, material))
        return self._open_key(dialect, material) if key is None and self.config.open else key

    def _refuse_key(self, connection: Connection, dialect: Dialect, context: Context, key: Key | None) -> None:
        if key is None:
            self.unauthenticated += 1
        else:
            key.tally.arrived += 1
            key.tally.reject("auth")
        reply = dialect.failure(resolve_failure_name("auth", dialect.name), context, seconds=None)
        assert reply is not None
        self._respond(connection, dialect, context, reply)

    def _open_key(self, dialect: Dialect, material: str) -> Key | None:
        """A key made up on the spot, in an unlimited organisation of its own dialect."""
        organisation_id = f"open-{dialect.name}"
        organisation = self.organisations.get(organisation_id)
        if organisation is None:
            config = OrganisationConfig(id=organisation_id, dialect=dialect.name)
            organisation = self.organisations[organisation_id] = self._make(config)
        if len(organisation.keys) >= OPEN_KEYS_MAX:
            return None
        config_key = KeyConfig(key=material, id=f"{organisation_id}/{len(organisation.keys) + 1}")
        key = Key(config_key, organisation, now_ns=self.clock.now_ns())
        organisation.keys.append(key)
        self._keys[dialect.name, material] = key
        return key

    def find_key(self, name: str) -> Key | None:
        """The key with this id or material."""
        for key in self._keys.values():
            if name in (key.id, key.material):
                return key
        return None

    # --- report
    def report(self) -> dict[str, Any]:
        """What was seen and billed: per key, organisation and in all, as plain JSON types."""
        now_ns = self.clock.now_ns()
        organisations = list(self.organisations.values())
        tallies = [key.tally for organisation in organisations for key in organisation.keys]
        capacities = [organisation.request_capacity(now_ns) for organisation in organisations]
        known = [capacity for capacity in capacities if capacity is not None]
        return {
            "since_ns": self.since_ns,
            "now_ns": now_ns,
            "unauthenticated": self.unauthenticated,
            "total": {
                **sum_tallies(tallies, self.total),
                "request_capacity": sum(known) if len(known) == len(capacities) else None,
            },
            "organisations": {organisation.id: organisation.as_dict(now_ns) for organisation in organisations},
        }
