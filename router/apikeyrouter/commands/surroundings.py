"""Commands on what is around keys and clients: providers, limits, and who is told of what."""

from typing import Annotated, Any

import typer

from apikeyrouter.commands.remote import Service, command, path_of, read_secret
from apikeyrouter.commands.shared import COUNT_MAX, Id, Name, delete, group, number, read_file, settings

__all__ = ["limits", "providers", "webhooks"]

providers = group("Providers: where they are, and how they fare.")
limits = group("Limits: what is metered, and what of it is used.")
webhooks = group("Webhooks: who is told of which events.")

Adapter = Annotated[str | None, typer.Option("--adapter", help="Who talks to it: openai, anthropic, gemini, azure, …")]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="Where it is; none: the adapter's own.")]
OptionsFile = Annotated[
    str | None, typer.Option("--options", help="The adapter's own options: a YAML or JSON file; - for standard input.")
]
Group = Annotated[str | None, typer.Option("--quota-group", help="What the provider meters for these keys.")]
Key = Annotated[str | None, typer.Option("--key", help="Instead: our own limits on one key.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model that shares them; again for more.")]
Row = Annotated[
    list[str] | None,
    typer.Option("--row", help="E.g. rpm=500,tpm=200000 or rpd=1500,kind=calendar,timezone=UTC; again for more."),
]
Timeouts = Annotated[
    list[str] | None, typer.Option("--timeout", help="E.g. idle_ms=30000 or idle_ms=none, as in the file; again.")
]
Breaker = Annotated[list[str] | None, typer.Option("--breaker", help="E.g. failures=3, as in the file; again.")]
Connections = Annotated[
    int | None,
    typer.Option(
        "--connections-max", min=1, max=COUNT_MAX, help="Most connections that a worker has open to it at once."
    ),
]
PROVIDER_COLUMNS = (
    "id", "adapter", "keys", "breaker", "in_flight", "requests_total", "failures_total", "base_url", "source",
)  # fmt: skip
_TEXTS = ("kind", "timezone", "spend_period")
_EXAMPLES = {"--row": "rpm=500", "--timeout": "idle_ms=30000", "--breaker": "failures=3"}


# --- providers ---------------------------------------------------------------------------------------------------


@command(providers, "list")
def list_providers(service: Service) -> None:
    """Providers, their breakers, and how many keys they have."""
    service.table(service.pages("/providers", "providers"), PROVIDER_COLUMNS, name="providers")


@command(providers, "show")
def show_provider(service: Service, provider_id: Id) -> None:
    """One provider."""
    service.document(service.get("/providers" + path_of(provider_id)))


@command(providers, "add")
def add_provider(
    service: Service,
    provider_id: Id,
    adapter: Annotated[str, typer.Option("--adapter", help="Who talks to it: openai, anthropic, gemini, azure, …")],
    base_url: BaseUrl = None,
    options: OptionsFile = None,
    timeout: Timeouts = None,
    breaker: Breaker = None,
    connections: Connections = None,
) -> None:
    """Register a provider."""
    body = {"id": provider_id, "adapter": adapter, **_provider(base_url, options, timeout, breaker, connections)}
    told = service.send("POST", "/providers", body)
    service.document(told, line=f"registered {told['id']}; add a key: apikeyrouter keys add --provider {told['id']}")


@command(providers, "update")
def update_provider(
    service: Service, provider_id: Id, adapter: Adapter = None, base_url: BaseUrl = None, options: OptionsFile = None,
    timeout: Timeouts = None, breaker: Breaker = None, connections: Connections = None,
) -> None:  # fmt: skip
    """Change what is named; the rest stays. Timeouts and the breaker's settings are told as a whole."""
    body = {**settings(adapter=adapter), **_provider(base_url, options, timeout, breaker, connections)}
    told = service.send("PATCH", "/providers" + path_of(provider_id), body)
    service.document(told, line=f"changed {told['id']}")


@command(providers, "remove")
def remove_provider(service: Service, provider_id: Id) -> None:
    """Forget a provider that has no keys."""
    delete(service, "providers", provider_id, "removed")


def _provider(
    base_url: str | None, options: str | None, timeout: list[str] | None, breaker: list[str] | None,
    connections: int | None,
) -> dict[str, Any]:  # fmt: skip
    return settings(
        base_url=base_url, options=None if options is None else read_file(options), connections_max=connections,
        timeouts=dict(_setting(one, "--timeout") for one in timeout) if timeout else None,
        breaker_settings=dict(_setting(one, "--breaker") for one in breaker) if breaker else None,
    )  # fmt: skip


# --- limits ------------------------------------------------------------------------------------------------------


@command(limits, "list")
def list_limits(
    service: Service,
    kind: Annotated[str | None, typer.Option("--kind", help="Of a key, quota_group, provider or client.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what has no limits and is in order.")] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Say, too, when each will run out.")] = False,
) -> None:
    """What is metered, and what of it is used."""
    lanes = service.pages("/limits", "limits", kind=kind, everything=everything or None, forecast=forecast or None)
    rows = [{**lane, **limit, "lane": lane["id"]} for lane in lanes for limit in lane["limits"] or [{"name": None}]]
    known = ("lane", "name", "capacity", "used", "remaining", "full_again_at", "learned", "breaker", "source")
    columns = (*known, "forecast") if forecast else known
    service.table(rows, columns, name="limits")


@command(limits, "show")
def show_limits(service: Service, lane: Id) -> None:
    """One lane, e.g. g:org-a:*"""
    service.document(service.get("/limits" + path_of(lane)))


@command(limits, "state")
def state_limits(
    service: Service, row: Row = None, quota_group: Group = None, key: Key = None, model: Models = None
) -> None:
    """State the limits of a quota group or of one key."""
    body = settings(quota_group=quota_group, key=key, models=model or None, rows=_rows(row))
    told = service.send("POST", "/limits", body)
    service.document(told, line=told["id"])


@command(limits, "update")
def update_limits(service: Service, lane: Id, row: Row = None) -> None:
    """What the limits are from now on; what is used of them stays counted."""
    told = service.send("PATCH", "/limits" + path_of(lane), {"rows": _rows(row)})
    service.document(told, line=f"changed {told['id']}")


@command(limits, "delete")
def delete_limits(service: Service, lane: Id) -> None:
    """Take limits that were stated here out of force."""
    delete(service, "limits", lane, "deleted")


def _rows(texts: list[str] | None) -> list[dict[str, Any]]:
    """`rpm=500,kind=fixed` and so on. Errors: typer.BadParameter."""
    if not texts:
        raise typer.BadParameter("name what is limited, e.g. --row rpm=500,tpm=200000")
    return [dict(_setting(one, "--row") for one in text.split(",")) for text in texts]


def _setting(text: str, option: str) -> tuple[str, Any]:
    name, _, value = text.strip().partition("=")
    if name in _TEXTS:
        return name, value
    if value == "none":
        return name, None
    return name, number(value, option=option, example=_EXAMPLES[option])


# --- webhooks ----------------------------------------------------------------------------------------------------


@command(webhooks, "list")
def list_webhooks(service: Service) -> None:
    """Webhooks, and how their last deliveries went."""
    columns = ("name", "url", "events", "enabled", "last_delivery")
    service.table(service.pages("/webhooks", "webhooks"), columns, name="webhooks")


@command(webhooks, "create")
def create_webhook(
    service: Service,
    name: Name,
    target: Annotated[str, typer.Argument(help="The URL that events are sent to.")],
    event: Annotated[list[str] | None, typer.Option("--event", help="Which; again for more. None: all.")] = None,
    secret_from_stdin: Annotated[
        bool, typer.Option("--secret-from-stdin", help="Bring your own secret: it is read from standard input.")
    ] = False,
) -> None:
    """Have events sent to a URL. The secret they are signed with is printed, this once."""
    own = {"secret": read_secret("secret")} if secret_from_stdin else {}
    told = service.send("POST", "/webhooks", {"name": name, "url": target, **settings(events=event or None), **own})
    service.document(told, line=told.get("secret") or f"{name} exists already, as it was asked for")


@command(webhooks, "show")
def show_webhook(service: Service, name: Name) -> None:
    """One webhook, and how its last delivery went."""
    service.document(service.get("/webhooks" + path_of(name)))


@command(webhooks, "update")
def update_webhook(
    service: Service,
    name: Name,
    target: Annotated[str | None, typer.Option("--target", help="The URL that events are sent to.")] = None,
    event: Annotated[list[str] | None, typer.Option("--event", help="Which; again for more.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is told.")] = None,
) -> None:
    """Change what is named; the rest stays."""
    body = settings(url=target, events=event or None, enabled=enabled)
    service.document(service.send("PATCH", "/webhooks" + path_of(name), body), line=f"changed {name}")


@command(webhooks, "deliveries")
def list_deliveries(
    service: Service, name: Name, limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")] = 50
) -> None:
    """What waits to be delivered, then what arrived or was given up."""
    found = service.pages(f"/webhooks{path_of(name)}/deliveries", "deliveries", limit=limit)
    columns = ("event_id", "type", "state", "attempts", "status", "error", "created_at", "next_at")
    service.table(found, columns, name="deliveries")


@command(webhooks, "repeat")
def repeat_delivery(service: Service, name: Name, event_id: Id) -> None:
    """Send an event that was delivered or given up once more."""
    told = service.send("POST", f"/webhooks{path_of(name)}/deliveries{path_of(event_id)}/repeat")
    service.document(told, line=f"sent {told['event_id']} again")


@command(webhooks, "test")
def test_webhook(service: Service, name: Name) -> None:
    """Send it a test event."""
    told = service.send("POST", f"/webhooks{path_of(name)}/test")
    service.document(told, line=f"sent {told['event_id']}")


@command(webhooks, "delete")
def delete_webhook(service: Service, name: Name) -> None:
    """Send it nothing any more."""
    delete(service, "webhooks", name, "deleted")
