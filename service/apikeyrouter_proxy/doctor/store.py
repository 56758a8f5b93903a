"""What `doctor` finds in a store: keys, budgets, providers, webhooks, and the room that is left."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.quota_groups import merges
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.accounting import Period
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, InvalidRequestError
from apikeyrouter.infrastructure.ledger.scripts import lua_root
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.records import Records, records_for
from apikeyrouter.infrastructure.state_store.redis_connection import mapped_errors, open_client
from apikeyrouter.infrastructure.state_store.redis_records import RedisRecords
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter_proxy.deliveries import QUEUE
from apikeyrouter_proxy.doctor.findings import Finding, ok, problem, warning
from apikeyrouter_proxy.doctor.surroundings import Surroundings
from apikeyrouter_proxy.options import ProxyOptions
from apikeyrouter_proxy.outbound import Outbound
from apikeyrouter_proxy.usage import report

__all__ = ["look_into", "spending_rate"]

_READ_HEAD = """
local head = redis.call('HGET', KEYS[1], '')
if not head then return {-1, 0} end
local schema, _, _, _, _, _, suspect = struct.unpack('<ddddddd', head)
return {schema, suspect}
"""
"""Of the ledger's head: the layout, and whether its clock is in doubt."""
MEMORY_SHARE_MAX = 0.8
WAITING_LOOKED_AT = 1000
NAMED_MAX = 5
ENTRY_BYTES_MEASURED_MAX = 100_000_000
"""A hash that is larger is not measured: that walks through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Store:
    """What is looked at. `vault` None: the master key is kept beside an embedded server's data."""

    around: Surroundings
    entities: StateStore
    records: Records
    vault: KeyVault | None
    keys: list[APIKey]


async def look_into(url: str, info: Mapping[str, Any], around: Surroundings, *, embedded: bool) -> list[Finding]:
    """Everything that is known of the deployment on that server. Changes nothing."""
    settings = around.settings
    entities: StateStore = (
        MongoStateStore(settings.mongodb_url, settings.mongodb_database, settings.namespace, redis_url=url)
        if settings.mongodb_url
        else RedisStateStore(url, settings.namespace)
    )
    records = records_for(entities)
    try:
        await entities.health_check()
        keys: list[APIKey] = await entities.query_state(StateQuery("APIKey"))
        store = _Store(
            around=around, entities=entities, records=records, keys=keys, vault=None if embedded else _vault(around)
        )
        return [
            *(await _ledger(url, info, settings.namespace)), *_sealed(store), *_organisations(keys),
            *_unpriced(store), *(await _budgets(store)), *(await _webhooks(store)),
        ]  # fmt: skip
    except ApiKeyRouterError as exc:
        return [problem("store", str(exc), "check the URL, that the server runs, and that it lets us in")]
    finally:
        await records.close()
        await entities.aclose()


async def spending_rate(url: str, around: Surroundings) -> int:
    """Nano-dollars a second, on the average since yesterday began (UTC); today, when yesterday has nothing; 0: nobody
    knows.
    """
    now = datetime.now(UTC)
    records = RedisRecords(url, around.settings.namespace)
    try:
        rows = await report(records, (now.date() - timedelta(days=1), now.date()), by=("day",), only={})
    except ApiKeyRouterError:
        return 0  # what is wrong is told elsewhere
    finally:
        await records.close()
    if not rows:
        return 0
    began = datetime.fromisoformat(f"{rows[0]['day']}T00:00:00+00:00")
    cost: int = sum(row["cost_nanousd"] for row in rows)
    return round(cost / max((now - began).total_seconds(), 1.0))


def _vault(around: Surroundings) -> KeyVault:
    told = around.router.master_keys
    return KeyVault() if told is None else KeyVault.parse(told)


# --- the ledger and its server -----------------------------------------------------------------------------------


async def _ledger(url: str, info: Mapping[str, Any], namespace: str) -> list[Finding]:
    """Its layout, and the room that is left."""
    book, client = f"{namespace}:{{c:main}}:L", open_client(url)
    try:
        with mapped_errors(url):
            schema, suspect = await cast("Any", client).eval(_READ_HEAD, 1, book)
            count = int(await cast("Any", client).hlen(book))
            small = int(info.get("used_memory", 0)) <= ENTRY_BYTES_MEASURED_MAX
            size = int(await client.memory_usage(book, samples=20) or 0) if count and small else 0
    finally:
        await client.aclose()
    return [_schema(int(schema)), *_doubt(int(suspect)), _memory(info, count, size)]


def _doubt(suspect: int) -> list[Finding]:
    if suspect != 1:
        return []
    remedy = "let the server's machine keep time with NTP; hard budgets refuse until it agrees with the workers again"
    return [problem("ledger clock", "in doubt: it ran otherwise than the workers' clocks", remedy)]


def _schema(schema: int) -> Finding:
    ours = next(int(line.rpartition("=")[2]) for line in _lua("include/numbers.lua") if line.startswith("local SCHEMA"))
    if schema < 0:
        return ok("ledger", "empty: the first service or router begins it")
    if schema == ours:
        return ok("ledger", f"layout {schema}")
    remedy = "run the version that wrote it, or name another namespace (APIKEYROUTER_NAMESPACE); see docs/redis-keys.md"
    return problem("ledger", f"layout {schema}; this version reads {ours}", remedy)


def _lua(name: str) -> list[str]:
    return lua_root().joinpath(name).read_text().splitlines()


def _memory(info: Mapping[str, Any], count: int, size: int) -> Finding:
    used = int(info.get("used_memory", 0))
    most = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    each = f"; a lane, budget or reservation takes {size // count} bytes" if count and size else ""
    left = f" of {_megabytes(most)}" if most else ""
    found = f"{_megabytes(used)} used{left}; the ledger has {count} entries{each}"
    if most and used > most * MEMORY_SHARE_MAX:
        remedy = "give the server more memory (maxmemory): with noeviction it refuses every write when it is full"
        return warning("memory", found, remedy)
    room = f", room for {(most - used) * count // size} more" if most and count and size else ""
    return ok("memory", found + room)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


# --- keys --------------------------------------------------------------------------------------------------------


def _sealed(store: _Store) -> list[Finding]:
    """Whether the master keys open what is stored."""
    if store.vault is None or not store.keys:
        return []
    shut: list[str] = []
    stale = 0
    for key in store.keys:
        try:
            store.vault.decrypt(key.encrypted_material, key_id=key.id)
            stale += not store.vault.is_current(key.encrypted_material)
        except ApiKeyRouterError:
            shut.append(key.id)
    if shut:
        remedy = (
            "add the master key that they were sealed under to APIKEYROUTER_ENCRYPTION_KEY, after the first; or "
            "register them again"
        )
        return [problem("stored keys", f"{_some(shut)}: no master key opens them", remedy)]
    if stale:
        remedy = "keep the older master keys until this warning is gone; a service seals anew when it starts"
        return [warning("stored keys", f"{len(store.keys)}, {stale} of them sealed under an older master key", remedy)]
    return [ok("stored keys", f"{len(store.keys)}, all readable")]


def _organisations(keys: Iterable[APIKey]) -> list[Finding]:
    return [
        warning(
            "quota groups",
            f"keys {_some(conflict.keys)} are of one organisation and in the groups {_some(conflict.groups)}",
            "give them one quota_group: the provider meters them together, and they are counted apart",
        )
        for conflict in merges(keys)[1]
    ]


# --- prices and budgets ------------------------------------------------------------------------------------------


def _unpriced(store: _Store) -> list[Finding]:
    """Models that are named somewhere and that no price is known of."""
    config, prices = store.around.config, PriceBook.load()
    adapters: dict[str, str] = {}
    if config is not None:
        adapters = {id_: record.adapter for id_, record in config.providers.items()}
        for price in config.prices:
            prices.add(
                price.provider_id, price.model, tiers=price.tiers, service_tiers=price.service_tiers, **price.rates
            )
    for id_, adapter in adapters.items():
        prices.assume(id_, adapter)
    without = sorted({f"{model} of {id_}" for id_, model in _named(store) if prices.price(id_, model) is None})
    if not without:
        return []
    remedy = "state them under prices: in the file; under a hard budget they are refused, otherwise they cost nothing"
    return [warning("prices", f"none known of {_some(without)}", remedy)]


def _named(store: _Store) -> Iterable[tuple[str, str]]:
    """(provider, model) of every key and alias; of keys with a price of their own none."""
    config = store.around.config
    for record in config.keys if config is not None else ():
        yield from ((record.provider_id, model) for model in record.models or ())
    for targets in config.aliases.values() if config is not None else ():
        yield from ((target.provider_id, target.model) for target in targets)
    for key in store.keys:
        try:
            routing = key.routing
        except InvalidRequestError:
            continue  # its own service says so
        if routing.cost_per_1k is None:
            yield from ((key.provider_id, model) for model in routing.models or ())


async def _budgets(store: _Store) -> list[Finding]:
    """Hard budgets that never begin anew: once used up, nothing is served until somebody raises them."""
    config = store.around.config
    declared = config.scopes if config is not None else ()
    endless = [scope.id for scope in declared if scope.hard and scope.period is Period.TOTAL]
    for id_, document in (await store.entities.list_documents("budget")).items():
        scope = document.get("scope", {})
        if scope.get("period") == "total" and scope.get("hard"):
            endless.append(id_)
    if not endless:
        return []
    remedy = "nothing, where that is meant; else give them a period: once used up, they refuse for good"
    return [warning("budgets", f"{_some(sorted(set(endless)))} never begin anew (period total, hard)", remedy)]


# --- webhooks ----------------------------------------------------------------------------------------------------


async def _webhooks(store: _Store) -> list[Finding]:
    named = await store.entities.list_documents("webhook")
    if not named:
        return []
    waiting = [one.job["webhook"] for one in await store.records.waiting(QUEUE, limit=WAITING_LOOKED_AT)]
    outbound = Outbound(private=ProxyOptions.read(store.around.environ).private_urls)
    return [
        await _webhook(store, outbound, name, str(told.get("url")), waiting.count(name)) for name, told in named.items()
    ]


async def _webhook(store: _Store, outbound: Outbound, name: str, url: str, waiting: int) -> Finding:
    check, host = f"webhook {name}", urlsplit(url).netloc
    try:
        await outbound.check_resolved(url)
    except InvalidRequestError as exc:
        return problem(check, f"{host}: {exc.reason}", "correct it: apikeyrouter webhooks update … --target URL")
    last = await store.records.recall(f"webhook:{name}")
    if last is not None and not last["delivered"]:
        why = last["error"] or f"answered {last['status']}"
        remedy = f"look at the receiver; apikeyrouter webhooks deliveries {name} tells more"
        return warning(check, f"{host}: the last try failed ({why}), {waiting} wait", remedy)
    return ok(check, f"{host}; {waiting} wait")


def _some(names: Iterable[str]) -> str:
    told = list(names)
    more = f" and {len(told) - NAMED_MAX} more" if len(told) > NAMED_MAX else ""
    return ", ".join(told[:NAMED_MAX]) + more
