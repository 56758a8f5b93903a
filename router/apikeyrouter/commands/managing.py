"""Commands on what a running service is configured with: keys, clients, budgets, policies, admin keys, the whole."""

import json
from typing import Annotated, Any

import typer

from apikeyrouter.commands.remote import Service, command, path_of, read_secret
from apikeyrouter.commands.shared import File, Id, Name, delete, group, read_file, settings

__all__ = ["admin_keys", "budgets", "clients", "config", "keys", "policies"]


keys = group("Provider keys of a running service. Never their material.")
clients = group("Clients: who may call, how much and of what.")
budgets = group("Budgets and their books.")
policies = group("Policies: what may serve whom.")
admin_keys = group("Admin keys: who may manage.")
config = group("The configuration as a whole.")

Team = Annotated[str | None, typer.Option("--team", help="A team's.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model it may use; again for more. None: all.")]
Providers = Annotated[
    list[str] | None, typer.Option("--provider", help="A provider that may serve it; again for more.")
]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")]
Tpm = Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens a minute.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at once.")]
Weight = Annotated[float | None, typer.Option("--weight", help="Its share where capacity is scarce.")]
Priority = Annotated[str | None, typer.Option("--priority", help="interactive or batch.")]
Expires = Annotated[str | None, typer.Option("--expires-at", help="When it ends, e.g. 2030-01-01T00:00:00Z.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
OwnToken = Annotated[
    bool, typer.Option("--token-from-stdin", help="Bring your own token: it is read from standard input.")
]
KEY_COLUMNS = ("id", "provider_id", "state", "state_reason", "usage_count", "failure_count")
CLIENT_COLUMNS = ("name", "team", "models", "providers", "rpm", "tpm", "concurrency", "enabled", "expires_at", "source")
BUDGET_COLUMNS = (
    "id", "enforcement", "limit_usd", "settled_usd", "held_usd", "suspense_usd", "remaining_usd", "resets_at", "source",
)  # fmt: skip


# --- keys --------------------------------------------------------------------------------------------------------


@command(keys, "list")
def list_keys(
    service: Service, provider: Annotated[str | None, typer.Option("--provider", help="Only this provider's.")] = None
) -> None:
    """The keys that the service knows."""
    found = service.pages("/keys", "keys", provider_id=provider)
    service.table(
        found, KEY_COLUMNS, name="keys", none="no keys; add one with: apikeyrouter keys add --provider openai"
    )


@command(keys, "show")
def show_key(service: Service, key_id: Id) -> None:
    """One key."""
    service.document(service.get("/keys" + path_of(key_id)))


@command(keys, "history")
def show_history(service: Service, key_id: Id) -> None:
    """What became of a key, newest first."""
    found = service.get("/keys" + path_of(key_id) + "/transitions")["transitions"]
    service.table(found, ("timestamp", "from_state", "to_state", "actor", "reason"), name="transitions")


@command(keys, "add")
def add_key(
    service: Service,
    provider: Annotated[str, typer.Option("--provider", help="Whose key it is.")],
    quota_group: Annotated[str | None, typer.Option("--quota-group", help="What the provider meters together.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="A model it serves; again for more.")] = None,
    weight: Weight = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="More of it: a YAML or JSON file.")] = None,
) -> None:
    """Register a key. The material is read from standard input, not from the command line."""
    told = {} if metadata is None else read_file(metadata)
    told = {**told, **settings(quota_group=quota_group, models=model or None, weight=weight)}
    body = {"key_material": read_secret("key"), "provider_id": provider, "metadata": told}
    made = service.send("POST", "/keys", body)
    service.document(made, line=f"registered {made['id']}")


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
    budget: Annotated[list[str] | None, typer.Option("--budget", help="E.g. 50/monthly, or 5/daily/soft.")] = None,
    token_from_stdin: OwnToken = False,
) -> None:  # fmt: skip
    """Make a client. Its token is printed, this once."""
    body = settings(
        team=team, models=model or None, providers=provider or None, rpm=rpm, tpm=tpm, concurrency=concurrency,
        weight=weight, priority=priority, expires_at=expires_at,
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
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is served.")] = None,
    unset: Annotated[list[str] | None, typer.Option("--unset", help="A setting to take away, e.g. rpm.")] = None,
) -> None:  # fmt: skip
    """Change what is named; the rest stays."""
    body = settings(
        team=team, models=model or None, providers=provider or None, rpm=rpm, tpm=tpm, concurrency=concurrency,
        weight=weight, priority=priority, expires_at=expires_at, enabled=enabled,
    )  # fmt: skip
    told = service.send("PATCH", "/clients" + path_of(name), {**body, **dict.fromkeys(unset or ())})
    service.document(told, line=f"changed {name}")


@command(clients, "rotate")
def rotate_client(
    service: Service,
    name: Name,
    grace: Annotated[int, typer.Option("--grace", min=0, help="Seconds that the old token is taken too.")] = 0,
) -> None:
    """A new token, printed this once."""
    told = service.send("POST", f"/clients{path_of(name)}/rotate", {"grace_seconds": grace})
    service.document(told, line=told["token"])


@command(clients, "revoke")
def revoke_client(service: Service, name: Name) -> None:
    """Forget a client and the budgets it was made with."""
    delete(service, "clients", name, "revoked")


# --- budgets -----------------------------------------------------------------------------------------------------


@command(budgets, "list")
def list_budgets(service: Service) -> None:
    """Every budget, with its books as of now."""
    service.table(service.pages("/budgets", "budgets"), BUDGET_COLUMNS, name="budgets")


@command(budgets, "show")
def show_budget(service: Service, budget_id: Id) -> None:
    """One budget."""
    service.document(service.get("/budgets" + path_of(budget_id)))


@command(budgets, "create")
def create_budget(
    service: Service,
    limit_usd: Annotated[float, typer.Option("--limit", help="Dollars.")],
    scope: Annotated[str, typer.Option("--scope", help="global, provider, key, team or client.")] = "global",
    scope_id: Annotated[str | None, typer.Option("--scope-id", help="Which one.")] = None,
    period: Annotated[str, typer.Option("--period", help="hourly, daily, weekly, monthly or total.")] = "monthly",
    soft: Annotated[bool, typer.Option("--soft", help="Tell, but do not refuse.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Tells budgets of one scope apart.")] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help="Where its periods begin; UTC.")] = None,
) -> None:
    """Make a budget."""
    body = settings(
        scope=scope, scope_id=scope_id, limit_usd=limit_usd, period=period, enforcement="soft" if soft else "hard",
        name=name, timezone=timezone,
    )  # fmt: skip
    told = service.send("POST", "/budgets", body)
    service.document(told, line=told["id"])


@command(budgets, "update")
def update_budget(
    service: Service,
    budget_id: Id,
    limit_usd: Annotated[float | None, typer.Option("--limit", help="Dollars.")] = None,
    period: Annotated[str | None, typer.Option("--period", help="hourly, daily, weekly, monthly or total.")] = None,
    enforcement: Annotated[str | None, typer.Option("--enforcement", help="hard or soft.")] = None,
) -> None:
    """Change what is named; what was spent stays."""
    body = settings(limit_usd=limit_usd, period=period, enforcement=enforcement)
    told = service.send("PATCH", "/budgets" + path_of(budget_id), body)
    service.document(told, line=f"changed {told['id']}")


@command(budgets, "delete")
def delete_budget(service: Service, budget_id: Id) -> None:
    """Forget a budget."""
    delete(service, "budgets", budget_id, "deleted")


# --- policies ----------------------------------------------------------------------------------------------------


@command(policies, "list")
def list_policies(service: Service) -> None:
    """Every policy."""
    columns = ("id", "type", "scope", "scope_id", "enforcement", "priority", "enabled", "source")
    service.table(service.pages("/policies", "policies"), columns, name="policies")


@command(policies, "show")
def show_policy(service: Service, policy_id: Id) -> None:
    """One policy."""
    service.document(service.get("/policies" + path_of(policy_id)))


@command(policies, "create")
def create_policy(service: Service, file: File) -> None:
    """Put the policy of a file into force."""
    told = service.send("POST", "/policies", read_file(file))
    service.document(told, line=told["id"])


@command(policies, "validate")
def validate_policy(service: Service, file: File) -> None:
    """Check the policy of a file; exit 1 if it is not sound."""
    told = service.send("POST", "/policies/validate", read_file(file))
    lines = [*(f"error: {one}" for one in told["errors"]), *(f"warning: {one}" for one in told["warnings"])]
    service.document(told, line="\n".join(lines) or "sound")
    raise typer.Exit(0 if told["valid"] else 1)


@command(policies, "dry-run")
def dry_run_policy(
    service: Service,
    file: File,
    model: Annotated[str | None, typer.Option("--model", help="Try it on a request for this model.")] = None,
    team: Team = None,
    client: Annotated[str | None, typer.Option("--client", help="A client's.")] = None,
) -> None:
    """What the policy of a file would change."""
    context = settings(model=model, team=team, client=client)
    service.document(service.send("POST", "/policies/dry-run", {"policy": read_file(file), "context": context or None}))


@command(policies, "delete")
def delete_policy(service: Service, policy_id: Id) -> None:
    """Take a policy out of force."""
    delete(service, "policies", policy_id, "deleted")


# --- admin keys and the whole ------------------------------------------------------------------------------------


@command(admin_keys, "list")
def list_admin_keys(service: Service) -> None:
    """Named admin keys. Never the keys themselves."""
    columns = ("name", "role", "created_at", "expires_at")
    service.table(service.pages("/admin-keys", "admin_keys"), columns, name="admin_keys")


@command(admin_keys, "create")
def create_admin_key(
    service: Service,
    name: Name,
    role: Annotated[str, typer.Option("--role", help="read, operate or admin.")] = "read",
    expires_at: Expires = None,
) -> None:
    """Make an admin key. It is printed, this once."""
    told = service.send("POST", "/admin-keys", {"name": name, "role": role, **settings(expires_at=expires_at)})
    service.document(told, line=told.get("key") or f"{name} exists already, as it was asked for")


@command(admin_keys, "rotate")
def rotate_admin_key(service: Service, name: Name) -> None:
    """A new key under the name, printed this once; the old one is refused."""
    told = service.send("POST", f"/admin-keys{path_of(name)}/rotate")
    service.document(told, line=told["key"])


@command(admin_keys, "revoke")
def revoke_admin_key(service: Service, name: Name) -> None:
    """Refuse that key from now on."""
    delete(service, "admin-keys", name, "revoked")


@command(config, "reload")
def reload(service: Service) -> None:
    """Read the configuration file again, in every worker that has it."""
    told = service.send("POST", "/config/reload")
    lines = [f"taken over: {told['keys']} keys, {told['clients']} clients, {told['budgets']} budgets"]
    service.document(told, line="\n".join([*lines, *(f"warning: {one}" for one in told["warnings"])]))


@command(config, "export")
def export(
    service: Service,
    secrets: Annotated[bool, typer.Option("--secrets", help="Keys as ciphertext, tokens as hashes: a backup.")] = False,
) -> None:
    """Everything that was configured through the API, as JSON."""
    typer.echo(json.dumps(service.get("/export", secrets=secrets or None), indent=2))


@command(config, "import")
def import_(
    service: Service,
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="The document's in place of what there is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Take an export in: all of it is checked first."""
    body = {"document": read_file(file), "replace": replace, "dry_run": dry_run}
    service.document(service.send("POST", "/import", body))


def _budget(text: str) -> dict[str, Any]:
    """`50/monthly` or `5/daily/soft`. Errors: typer.BadParameter."""
    amount, _, rest = text.partition("/")
    period, _, enforcement = rest.partition("/")
    try:
        return {"limit_usd": float(amount), "period": period or "monthly", "enforcement": enforcement or "hard"}
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r}: write dollars/period, e.g. 50/monthly") from exc
