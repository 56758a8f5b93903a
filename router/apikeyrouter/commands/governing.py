"""Commands on what rules a running service: policies, who may manage, the configuration as a whole."""

import json
from pathlib import Path
from typing import Annotated

import typer

from apikeyrouter.commands.remote import Service, command, path_of
from apikeyrouter.commands.shared import (
    COUNT_MAX,
    Expires,
    File,
    Id,
    Name,
    Team,
    Unset,
    delete,
    group,
    read_file,
    settings,
)

__all__ = ["admin_keys", "config", "policies"]


policies = group("Policies: what may serve whom.")
admin_keys = group("Admin keys: who may manage.")
config = group("The configuration as a whole.")


# --- policies ----------------------------------------------------------------------------------------------------


@command(policies, "list")
def list_policies(
    service: Service, scope: Annotated[str | None, typer.Option("--scope", help="Only of this kind, e.g. team.")] = None
) -> None:
    """Every policy."""
    columns = ("id", "type", "scope", "scope_id", "enforcement", "priority", "enabled", "source")
    service.table(service.pages("/policies", "policies", scope=scope), columns, name="policies")


@command(policies, "show")
def show_policy(service: Service, policy_id: Id) -> None:
    """One policy."""
    service.document(service.get("/policies" + path_of(policy_id)))


@command(policies, "create")
def create_policy(service: Service, file: File) -> None:
    """Put the policy of a file into force."""
    told = service.send("POST", "/policies", read_file(file))
    service.document(told, line=told["id"])


@command(policies, "update")
def update_policy(
    service: Service,
    policy_id: Id,
    file: Annotated[str | None, typer.Argument(help="What is to change: a YAML or JSON file; - for input.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is in force.")] = None,
    enforcement: Annotated[str | None, typer.Option("--enforcement", help="hard, soft or shadow.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=-COUNT_MAX, max=COUNT_MAX, help="Of two that disagree, the higher.")
    ] = None,
) -> None:
    """Change what is named in the file or here; the rest stays."""
    told = {} if file is None else read_file(file)
    body = {**told, **settings(enabled=enabled, enforcement=enforcement, priority=priority)}
    service.document(service.send("PATCH", "/policies" + path_of(policy_id), body), line=f"changed {policy_id}")


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


@command(admin_keys, "show")
def show_admin_key(service: Service, name: Name) -> None:
    """One of them."""
    service.document(service.get("/admin-keys" + path_of(name)))


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


@command(admin_keys, "update")
def update_admin_key(
    service: Service,
    name: Name,
    role: Annotated[str | None, typer.Option("--role", help="read, operate or admin.")] = None,
    expires_at: Expires = None,
    unset: Unset = None,
) -> None:
    """Change what it may, or when it ends."""
    body = {**settings(role=role, expires_at=expires_at), **dict.fromkeys(unset or ())}
    service.document(service.send("PATCH", "/admin-keys" + path_of(name), body), line=f"changed {name}")


@command(admin_keys, "rotate")
def rotate_admin_key(service: Service, name: Name) -> None:
    """A new key under the name, printed this once; the old one is refused."""
    told = service.send("POST", f"/admin-keys{path_of(name)}/rotate")
    service.document(told, line=told["key"])


@command(admin_keys, "revoke")
def revoke_admin_key(service: Service, name: Name) -> None:
    """Refuse that key from now on."""
    delete(service, "admin-keys", name, "revoked")


@config.command("check")
def check(
    file: Annotated[Path | None, typer.Argument(help="The file; none: APIKEYROUTER_CONFIG.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Whether a configuration file is sound, before anything reads it: no service is asked; exit 1 if it is not."""
    from apikeyrouter.commands.config_check import run

    raise typer.Exit(run(file, json=json_))


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
    service.document(service.send("POST", "/import", body), without="entries")
