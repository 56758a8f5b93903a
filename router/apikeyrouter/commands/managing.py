"""Commands on what a running service counts by: provider keys, clients, budgets."""

from typing import Annotated, Any

import typer

from apikeyrouter.commands.remote import EXIT_REFUSED, Service, command, path_of, read_secret
from apikeyrouter.commands.shared import (
    COUNT_MAX,
    DOLLARS_MAX,
    SECONDS_MAX,
    Expires,
    Id,
    Name,
    Team,
    Unset,
    delete,
    finite,
    group,
    number,
    read_file,
    read_text,
    settings,
)

__all__ = ["budgets", "clients", "keys"]


keys = group("Provider keys of a running service. Never their material.")
clients = group("Clients: who may call, how much and of what.")
budgets = group("Budgets and their books.")

Models = Annotated[list[str] | None, typer.Option("--model", help="A model it may use; again for more. None: all.")]
Providers = Annotated[
    list[str] | None, typer.Option("--provider", help="A provider that may serve it; again for more.")
]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, max=COUNT_MAX, help="Requests a minute.")]
Tpm = Annotated[int | None, typer.Option("--tpm", min=1, max=COUNT_MAX, help="Tokens a minute.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", min=1, max=COUNT_MAX, help="Requests at once.")]
Weight = Annotated[float | None, typer.Option("--weight", min=0, max=1e6, callback=finite, help="Its share.")]
Priority = Annotated[str | None, typer.Option("--priority", help="interactive or batch.")]
QuotaGroup = Annotated[str | None, typer.Option("--quota-group", help="What the provider meters together.")]
Served = Annotated[list[str] | None, typer.Option("--model", help="A model it serves; again for more.")]
Budgets = Annotated[list[str] | None, typer.Option("--budget", help="E.g. 50/monthly, or 5/daily/soft.")]
Timezone = Annotated[str | None, typer.Option("--timezone", help="Where its periods begin; UTC.")]
Unpriced = Annotated[
    str | None, typer.Option("--unpriced", help="What has no price or bound: deny, flat (with --flat) or meter.")
]
Flat = Annotated[
    float | None,
    typer.Option("--flat", min=0, max=DOLLARS_MAX, callback=finite, help="What such a request is charged, in dollars."),
]
Suspense = Annotated[
    str | None, typer.Option("--suspense", help="Money whose end was never told: charge, refund or hold.")
]
SuspenseAfter = Annotated[
    int | None, typer.Option("--suspense-after", min=0, max=SECONDS_MAX, help="When that happens: after these seconds.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
Enabled = Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is served.")]
OwnToken = Annotated[
    bool, typer.Option("--token-from-stdin", help="Bring your own token: it is read from standard input.")
]
KEY_COLUMNS = ("id", "provider_id", "state", "state_reason", "usage_count", "failure_count")
CLIENT_COLUMNS = ("name", "team", "models", "providers", "rpm", "tpm", "concurrency", "enabled", "expires_at", "source")
CELL_COLUMNS = ("cell", "granted_usd", "settled_usd", "held_usd", "suspense_usd", "free_usd")
BUDGET_COLUMNS = (
    "id", "enforcement", "limit_usd", "settled_usd", "held_usd", "suspense_usd", "remaining_usd", "resets_at", "source",
)  # fmt: skip


# --- keys --------------------------------------------------------------------------------------------------------


@command(keys, "list")
def list_keys(
    service: Service,
    provider: Annotated[str | None, typer.Option("--provider", help="Only this provider's.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only in this state, e.g. available.")] = None,
) -> None:
    """The keys that the service knows."""
    found = service.pages("/keys", "keys", provider_id=provider, state=state)
    service.table(
        found, KEY_COLUMNS, name="keys", none="no keys; add one with: apikeyrouter keys add --provider openai"
    )


@command(keys, "show")
def show_key(service: Service, key_id: Id) -> None:
    """One key."""
    service.document(service.get("/keys" + path_of(key_id)))


@command(keys, "history")
def show_history(
    service: Service,
    key_id: Annotated[str | None, typer.Argument(help="Its id; none: of all keys.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
) -> None:
    """What became of a key, or of all, newest first."""
    path = "/transitions" if key_id is None else f"/keys{path_of(key_id)}/transitions"
    columns = ("timestamp", "entity_id", "from_state", "to_state", "actor", "reason")
    service.table(service.get(path, limit=limit)["transitions"], columns, name="transitions")


@command(keys, "add")
def add_key(
    service: Service,
    provider: Annotated[str, typer.Option("--provider", help="Whose key it is.")],
    quota_group: QuotaGroup = None,
    model: Served = None,
    weight: Weight = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="More of it: a YAML or JSON file.")] = None,
) -> None:
    """Register a key. The material is read from standard input, not from the command line."""
    told = {} if metadata is None else read_file(metadata)
    told = {**told, **settings(quota_group=quota_group, models=model or None, weight=weight)}
    body = {"key_material": read_secret("key"), "provider_id": provider, "metadata": told}
    made = service.send("POST", "/keys", body)
    service.document(made, line=f"registered {made['id']}")


@command(keys, "import")
def import_keys(
    service: Service,
    file: Annotated[str, typer.Argument(help="A file of JSON lines or CSV, or a JSON array; - for standard input.")],
    provider: Annotated[str | None, typer.Option("--provider", help="Whose keys those are that do not say so.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of each.")] = False,
) -> None:
    """Register many keys; exit 1 if one was refused. A row has key_material, provider_id and metadata.

    The first line of CSV names its columns; those of other names are metadata.
    """
    text = read_text(file)
    told = service.send_text("/keys/import", text, _kind_of(text), provider_id=provider, dry_run=dry_run or None)
    service.table(told["rows"], ("line", "outcome", "id", "reason"), name="rows", none="no rows")
    raise typer.Exit(EXIT_REFUSED if told["refused"] else 0)


def _kind_of(text: str) -> str:
    """The content type of keys in a file, by how it begins."""
    begin = text.lstrip("\ufeff \t\r\n")[:1]
    return {"{": "application/x-ndjson", "[": "application/json"}.get(begin, "text/csv")


@command(keys, "update")
def update_key(
    service: Service,
    key_id: Id,
    quota_group: QuotaGroup = None,
    model: Served = None,
    weight: Weight = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="All of it anew: a YAML or JSON file.")] = None,
    unset: Unset = None,
    state: Annotated[str | None, typer.Option("--state", help="available, throttled, exhausted, disabled, …")] = None,
    for_seconds: Annotated[
        float | None,
        typer.Option("--for", min=0, max=SECONDS_MAX, callback=finite, help="How long a throttled key stays out."),
    ] = None,
    reason: Reason = "",
) -> None:
    """Change what is named; the rest stays. Metadata goes on from what it is, or from a file."""

    def changed(key: dict[str, Any]) -> dict[str, Any]:
        body = settings(state=state, for_seconds=for_seconds, reason=reason or None)
        told = settings(quota_group=quota_group, models=model or None, weight=weight)
        if told or unset or metadata is not None:
            known = key["metadata"] if metadata is None else read_file(metadata)
            body["metadata"] = {name: value for name, value in {**known, **told}.items() if name not in (unset or ())}
        return body

    told = service.change("/keys" + path_of(key_id), changed)
    service.document(told, line=f"{told['id']} is {told['state']}")


@command(keys, "rotate")
def rotate_key(service: Service, key_id: Id) -> None:
    """Give a key new material under its id; it is read from standard input."""
    told = service.send("POST", f"/keys{path_of(key_id)}/rotate", {"key_material": read_secret("key")})
    service.document(told, line=f"rotated {told['id']}")


@command(keys, "disable")
def disable_key(service: Service, key_id: Id, reason: Reason = "") -> None:
    """Take a key out until it is enabled again."""
    _set_state(service, key_id, "disabled", reason)


@command(keys, "enable")
def enable_key(service: Service, key_id: Id, reason: Reason = "") -> None:
    """Bring a key back."""
    _set_state(service, key_id, "available", reason)


def _set_state(service: Service, key_id: str, state: str, reason: str) -> None:
    told = service.send("PATCH", "/keys" + path_of(key_id), {"state": state, "reason": reason})
    service.document(told, line=f"{told['id']} is {told['state']}")


@command(keys, "probe")
def probe_key(service: Service, key_id: Id) -> None:
    """Ask the provider whether it takes the key; exit 1 if it does not."""
    told = service.send("POST", f"/keys{path_of(key_id)}/probe")
    words = {True: "works", False: "does not work", None: "could not be tried"}[told["works"]]
    service.document(told, line=f"{key_id} {words}: {told['state']} {told['message']}".rstrip())
    raise typer.Exit(0 if told["works"] else 1)


@command(keys, "revoke")
def revoke_key(service: Service, key_id: Id) -> None:
    """Forget a key; what is under way with it ends as it does."""
    delete(service, "keys", key_id, "revoked")


# --- clients -----------------------------------------------------------------------------------------------------


@command(clients, "list")
def list_clients(service: Service, team: Team = None) -> None:
    """Every client. Never their tokens."""
    service.table(service.pages("/clients", "clients", team=team), CLIENT_COLUMNS, name="clients")


@command(clients, "show")
def show_client(service: Service, name: Name) -> None:
    """One client."""
    service.document(service.get("/clients" + path_of(name)))


@command(clients, "create")
def create_client(
    service: Service, name: Name, team: Team = None, model: Models = None, provider: Providers = None, rpm: Rpm = None,
    tpm: Tpm = None, concurrency: Concurrency = None, weight: Weight = None, priority: Priority = None,
    expires_at: Expires = None,
    budget: Budgets = None,
    enabled: Enabled = None,
    token_from_stdin: OwnToken = False,
) -> None:  # fmt: skip
    """Make a client. Its token is printed, this once."""
    body = settings(
        team=team, models=model or None, providers=provider or None, rpm=rpm, tpm=tpm, concurrency=concurrency,
        weight=weight, priority=priority, expires_at=expires_at, enabled=enabled,
        budgets=[_budget(text) for text in budget or ()] or None,
    )  # fmt: skip
    if token_from_stdin:
        body["token"] = read_secret("token")
    told = service.send("POST", "/clients", {"name": name, **body})
    service.document(told, line=told.get("token") or f"{name} exists already, as it was asked for")


@command(clients, "update")
def update_client(
    service: Service, name: Name, team: Team = None, model: Models = None, provider: Providers = None, rpm: Rpm = None,
    tpm: Tpm = None, concurrency: Concurrency = None, weight: Weight = None, priority: Priority = None,
    expires_at: Expires = None,
    budget: Budgets = None,
    enabled: Enabled = None,
    unset: Unset = None,
) -> None:  # fmt: skip
    """Change what is named; the rest stays. Budgets replace those that it was made with."""
    body = settings(
        team=team, models=model or None, providers=provider or None, rpm=rpm, tpm=tpm, concurrency=concurrency,
        weight=weight, priority=priority, expires_at=expires_at, enabled=enabled,
        budgets=[_budget(text) for text in budget or ()] or None,
    )  # fmt: skip
    told = service.send("PATCH", "/clients" + path_of(name), {**body, **dict.fromkeys(unset or ())})
    service.document(told, line=f"changed {name}")


@command(clients, "rotate")
def rotate_client(
    service: Service,
    name: Name,
    grace: Annotated[
        int, typer.Option("--grace", min=0, max=SECONDS_MAX, help="Seconds that the old token is taken too.")
    ] = 0,
    token_from_stdin: OwnToken = False,
) -> None:
    """A new token, printed this once."""
    own = {"token": read_secret("token")} if token_from_stdin else {}
    told = service.send("POST", f"/clients{path_of(name)}/rotate", {"grace_seconds": grace, **own})
    service.document(told, line=told["token"])


@command(clients, "revoke")
def revoke_client(service: Service, name: Name) -> None:
    """Forget a client and the budgets it was made with."""
    delete(service, "clients", name, "revoked")


# --- budgets -----------------------------------------------------------------------------------------------------


@command(budgets, "list")
def list_budgets(
    service: Service,
    scope: Annotated[str | None, typer.Option("--scope", help="Only of this kind, e.g. team.")] = None,
    scope_id: Annotated[str | None, typer.Option("--scope-id", help="Only of this one.")] = None,
) -> None:
    """Every budget, with its books as of now."""
    found = service.pages("/budgets", "budgets", scope=scope, scope_id=scope_id)
    service.table(found, BUDGET_COLUMNS, name="budgets")


@command(budgets, "show")
def show_budget(service: Service, budget_id: Id) -> None:
    """One budget; where the accounting has several cells, what of it lies in which."""
    service.document(service.get("/budgets" + path_of(budget_id)), below=("cells", CELL_COLUMNS))


@command(budgets, "create")
def create_budget(
    service: Service,
    limit_usd: Annotated[float, typer.Option("--limit", min=0, max=DOLLARS_MAX, callback=finite, help="Dollars.")],
    scope: Annotated[str, typer.Option("--scope", help="global, provider, key, team or client.")] = "global",
    scope_id: Annotated[str | None, typer.Option("--scope-id", help="Which one.")] = None,
    period: Annotated[str, typer.Option("--period", help="hourly, daily, weekly, monthly or total.")] = "monthly",
    soft: Annotated[bool, typer.Option("--soft", help="Tell, but do not refuse.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Tells budgets of one scope apart.")] = None,
    timezone: Timezone = None,
    unpriced: Unpriced = None,
    flat: Flat = None,
    suspense: Suspense = None,
    suspense_after: SuspenseAfter = None,
) -> None:
    """Make a budget."""
    body = settings(
        scope=scope, scope_id=scope_id, limit_usd=limit_usd, period=period, enforcement="soft" if soft else "hard",
        name=name, timezone=timezone, unpriced=unpriced, flat_usd=flat, suspense=suspense,
        suspense_after_seconds=suspense_after,
    )  # fmt: skip
    told = service.send("POST", "/budgets", body)
    service.document(told, line=told["id"])


@command(budgets, "update")
def update_budget(
    service: Service,
    budget_id: Id,
    limit_usd: Annotated[
        float | None, typer.Option("--limit", min=0, max=DOLLARS_MAX, callback=finite, help="Dollars.")
    ] = None,
    period: Annotated[str | None, typer.Option("--period", help="hourly, daily, weekly, monthly or total.")] = None,
    enforcement: Annotated[str | None, typer.Option("--enforcement", help="hard or soft.")] = None,
    timezone: Timezone = None,
    unpriced: Unpriced = None,
    flat: Flat = None,
    suspense: Suspense = None,
    suspense_after: SuspenseAfter = None,
) -> None:
    """Change what is named; what was spent stays."""
    body = settings(
        limit_usd=limit_usd, period=period, enforcement=enforcement, timezone=timezone, unpriced=unpriced,
        flat_usd=flat, suspense=suspense, suspense_after_seconds=suspense_after,
    )  # fmt: skip
    told = service.send("PATCH", "/budgets" + path_of(budget_id), body)
    service.document(told, line=f"changed {told['id']}")


@command(budgets, "delete")
def delete_budget(service: Service, budget_id: Id) -> None:
    """Forget a budget."""
    delete(service, "budgets", budget_id, "deleted")


def _budget(text: str) -> dict[str, Any]:
    """`50/monthly` or `5/daily/soft`. Errors: typer.BadParameter."""
    amount, _, rest = text.partition("/")
    period, _, enforcement = rest.partition("/")
    limit = float(number(amount, option="--budget", example="50/monthly"))
    return {"limit_usd": limit, "period": period or "monthly", "enforcement": enforcement or "hard"}
