"""``/_sim/…``: what the tests and the demo ask of the simulator itself; only from loopback."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
from msgspec import field

from apikeyrouter.simulator.app import FAILURE_NAMES, SimulatedProviders
from apikeyrouter.simulator.calls import JSON_HEADER, encode
from apikeyrouter.simulator.clock import NS_PER_SECOND
from apikeyrouter.simulator.config import (
    ConfigError,
    FailureRule,
    LimitRow,
    OrganisationConfig,
    Part,
    check_organisation,
    parse_part,
)
from apikeyrouter.simulator.failures import RULES_MAX
from apikeyrouter.simulator.http_server import Connection, Request
from apikeyrouter.simulator.organisations import Organisation

__all__ = ["PREFIX", "ControlPlane", "ControlRequest"]

PREFIX = "/_sim/"
_FIXED_SETTINGS = frozenset({"id", "dialect", "keys", "limits", "prices"})


class ControlRequest(Part, frozen=True):
    """What ``POST /_sim/control`` takes; all of it is checked before any of it is done.

    ``failures`` adds rules, ``clear_failures`` forgets the others first. ``settings`` (latency_ms,
    tokens_per_second, output_tokens, …) and ``limits`` (fresh limits) are for ``organisation``; settings without one
    are for all. Keys are named by id or material. ``clock_advance_seconds`` jumps the providers' clock forward.
    """

    clear_failures: bool = False
    failures: list[FailureRule] = field(default_factory=list)
    organisation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    limits: list[LimitRow] | None = None
    disable_keys: list[str] = field(default_factory=list)
    enable_keys: list[str] = field(default_factory=list)
    clock_advance_seconds: float = 0


class ControlPlane:
    """Answers the simulator's own paths."""

    def __init__(self, providers: SimulatedProviders) -> None:
        self._providers = providers

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request on ``/_sim/…``; 403 for anybody but loopback."""
        if not _is_loopback(connection.peer_host):
            _reply(connection, 403, {"error": "only from loopback"})
            return
        route = (request.method, request.path[len(PREFIX) :])
        if route == ("GET", "report"):
            _reply(connection, 200, self._providers.report())
        elif route == ("GET", "journal"):
            _reply(connection, 200, self._providers.journal.as_dict())
        elif route == ("GET", "failures"):
            _reply(connection, 200, sorted(FAILURE_NAMES))
        elif route == ("POST", "reset"):
            self._providers.reset()
            _reply(connection, 200, {"ok": True})
        elif route == ("POST", "control"):
            self._control(request, connection)
        else:
            _reply(connection, 404, {"error": f"no {request.method} {request.path}"})

    def _control(self, request: Request, connection: Connection) -> None:
        try:
            self._apply(parse_part(msgspec.json.decode(request.body or b"{}"), ControlRequest))
        except (ConfigError, msgspec.DecodeError) as error:
            _reply(connection, 400, {"error": str(error)})
        else:
            _reply(connection, 200, {"ok": True})

    def _apply(self, control: ControlRequest) -> None:
        providers = self._providers
        check_failures(control.failures)
        organisations = self._select(control.organisation)
        keys = [(name, True) for name in control.disable_keys] + [(name, False) for name in control.enable_keys]
        found = [(providers.find_key(name), name, disabled) for name, disabled in keys]
        if any(key is None for key, _, _ in found):
            raise ConfigError("no such key: " + ", ".join(name for key, name, _ in found if key is None))
        if control.limits is not None and control.organisation is None:
            raise ConfigError("limits need an organisation")
        if not 0 <= control.clock_advance_seconds <= 10**9:
            raise ConfigError("clock_advance_seconds must be from 0 to 1e9")
        changed = [(organisation, _changed(organisation, control)) for organisation in organisations]
        # Everything is checked; from here on nothing can fail.
        providers.clock.advance(int(control.clock_advance_seconds * NS_PER_SECOND))
        for organisation, config in changed:
            organisation.configure(config)
            if control.limits is not None:
                organisation.set_limits(config, now_ns=providers.clock.now_ns())
        for key, _, disabled in found:
            assert key is not None
            key.disabled = disabled
        if control.clear_failures:
            providers.failures.clear()
        for rule in control.failures:
            providers.failures.add(rule)

    def _select(self, organisation_id: str | None) -> list[Organisation]:
        organisations = self._providers.organisations
        if organisation_id is None:
            return list(organisations.values())
        if organisation_id not in organisations:
            raise ConfigError(f"no such organisation: {organisation_id}")
        return [organisations[organisation_id]]


def check_failures(rules: list[FailureRule]) -> None:
    """Raises :class:`ConfigError` for a failure that nobody knows, or too many rules at once."""
    if len(rules) > RULES_MAX:
        raise ConfigError(f"more than {RULES_MAX} failure rules")
    for rule in rules:
        if rule.name not in FAILURE_NAMES:
            raise ConfigError(f"unknown failure {rule.name!r}; GET {PREFIX}failures lists them")


def _changed(organisation: Organisation, control: ControlRequest) -> OrganisationConfig:
    fixed = _FIXED_SETTINGS & control.settings.keys()
    if fixed:
        raise ConfigError(f"settings cannot change {', '.join(sorted(fixed))}")
    plain = {**msgspec.to_builtins(organisation.config), **control.settings}
    if control.limits is not None:
        plain["limits"] = msgspec.to_builtins(control.limits)
    changed = parse_part(plain, OrganisationConfig)
    check_organisation(changed, prices={})
    return changed


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host.split("%", 1)[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _reply(connection: Connection, status: int, data: object) -> None:
    connection.respond(status, JSON_HEADER, encode(data))
