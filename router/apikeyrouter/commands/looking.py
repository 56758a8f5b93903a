"""Commands that look at a running service: its state, its decisions, its books, its audit log."""

from typing import Annotated, Any

import typer

from apikeyrouter.commands.remote import Service, command, path_of
from apikeyrouter.commands.shared import COUNT_MAX, DOLLARS_MAX, finite, settings

__all__ = ["add_to"]

Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many, the newest.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    _add_state(app)
    _add_fleet(app)
    _add_audit(app)
    _add_lists(app)
    _add_suspense(app)


def _add_state(app: typer.Typer) -> None:
    @command(app, "state")
    def state(service: Service) -> None:
        """Keys, quotas and costs in a few numbers."""
        told = service.get("/state")
        keys, quotas, costs = told["keys"], told["quotas"], told["costs"]
        by_state = [f"{n} {name}" for name, n in keys.items() if n and name != "total"]
        lines = [
            f"keys       {keys['total']}: {', '.join(by_state)}",
            "quotas     " + ", ".join(f"{n} {name.removesuffix('_keys')}" for name, n in quotas.items() if n),
            f"spent      ${costs['total_spent']}",
            f"held       ${costs['held']}",
            f"suspense   ${costs['suspense']}",
            f"unpriced   {costs['unpriced_requests']} requests",
        ]  # fmt: skip
        service.document(told, line="\n".join(lines))

    @command(app, "whoami")
    def whoami(service: Service) -> None:
        """Whose admin key this is, what it may, and the service's version."""
        service.document(service.get("/whoami"))

    @command(app, "pool")
    def pool(
        service: Service,
        provider: Annotated[str | None, typer.Option("--provider", help="Only this provider's.")] = None,
        quota_group: Annotated[str | None, typer.Option("--quota-group", help="Only this group's.")] = None,
    ) -> None:
        """Every key as routing sees it now: what is left to it, what keeps it out and until when."""
        found = service.pages("/pool", "keys", provider_id=provider, quota_group=quota_group)
        columns = ("id", "provider_id", "quota_group", "state", "headroom", "breaker", "out_until", "in_flight")
        service.table(found, columns, name="keys")

    @command(app, "dry-run")
    def dry_run(
        service: Service,
        model: Annotated[str, typer.Argument(help="A model, or an alias.")],
        prompt: Annotated[str | None, typer.Option("--prompt", help="What would be asked.")] = None,
        max_tokens: Annotated[
            int | None, typer.Option("--max-tokens", min=1, max=COUNT_MAX, help="How long it may answer.")
        ] = None,
        provider: Annotated[str | None, typer.Option("--provider", help="Served by this one only.")] = None,
        client: Annotated[str | None, typer.Option("--client", help="As this client.")] = None,
        team: Annotated[str | None, typer.Option("--team", help="As this team.")] = None,
        objective: Annotated[str | None, typer.Option("--objective", help="E.g. cost.")] = None,
    ) -> None:
        """Where such a request would go now, and why, with the numbers. Nothing is held or sent."""
        asked = settings(
            model=model, prompt=prompt, max_tokens=max_tokens, provider_id=provider, client=client, team=team,
            objective=objective,
        )  # fmt: skip
        told = service.send("POST", "/decisions/dry-run", asked)
        service.document(told, line=told["text"])

    @command(app, "explain")
    def explain(service: Service, request_id: Annotated[str, typer.Argument(help="Its x-request-id.")]) -> None:
        """Why a request went where it went, with the numbers."""
        told = service.get("/decisions" + path_of(request_id))
        service.document(told, line=told["text"])


def _add_fleet(app: typer.Typer) -> None:
    @command(app, "workers")
    def workers(service: Service) -> None:
        """Every worker of the fleet: where, in which mode, how busy; lost ones for ten minutes."""
        columns = (
            "id", "host", "pid", "version", "state", "heard_at", "decisions_per_second", "open_requests", "waiting",
            "reserve_p50_us", "reserve_p99_us", "clock_offset_ms", "config_version", "memory_bytes", "cpu_share",
        )  # fmt: skip
        service.table(service.pages("/workers", "workers"), columns, name="workers")

    @command(app, "store")
    def store(service: Service) -> None:
        """How the Redis or Valkey behind the ledger is: memory, eviction, persistence, role, latency."""
        service.document(service.get("/store"))

    @command(app, "findings")
    def findings(service: Service) -> None:
        """What `doctor` finds in the running deployment. Exit 1 where something is a problem."""
        found = service.get("/findings")["findings"]
        service.table(found, ("verdict", "check", "found", "remedy"), name="findings")
        raise typer.Exit(int(any(one["verdict"] == "problem" for one in found)))


def _add_audit(app: typer.Typer) -> None:
    @command(app, "audit")
    def audit(
        service: Service,
        limit: Limit = 50,
        kind: Annotated[str | None, typer.Option("--kind", help="Only of this kind, e.g. client.")] = None,
        id: Annotated[str | None, typer.Option("--id", help="Only of this one.")] = None,
        actor: Annotated[str | None, typer.Option("--actor", help="Only of this admin key.")] = None,
        ledger: Annotated[bool, typer.Option("--ledger", help="Instead: do the books agree? Exit 1 if not.")] = False,
    ) -> None:
        """Who changed what, newest first."""
        if ledger:
            told = service.get("/audit/ledger")
            rows = [
                f"{one['where']} {one['counter']}: {one['counted']}, not {one['recomputed']}" for one in told["drift"]
            ]
            fine = f"the books agree: {told['lanes']} lanes, {told['scopes']} budgets"
            service.document(told, line="\n".join(rows) or fine)
            raise typer.Exit(1 if rows else 0)
        found = service.pages("/audit", "audit", limit=limit, kind=kind, id=id, actor=actor)
        service.table(found, ("at", "actor", "action", "id", "details"), name="audit")


def _add_lists(app: typer.Typer) -> None:
    @command(app, "usage")
    def usage(
        service: Service,
        by: Annotated[
            str, typer.Option("--by", help="Of client, team, key, provider, model, day; comma-separated.")
        ] = "day",
        since: Annotated[str | None, typer.Option("--since", help="First day, e.g. 2030-01-31; 30 days back.")] = None,
        until: Annotated[str | None, typer.Option("--until", help="Last day; today.")] = None,
        client: Annotated[str | None, typer.Option("--client", help="Only this client's.")] = None,
        team: Annotated[str | None, typer.Option("--team", help="Only this team's.")] = None,
        key: Annotated[str | None, typer.Option("--key", help="Only this key's.")] = None,
        provider: Annotated[str | None, typer.Option("--provider", help="Only this provider's.")] = None,
        model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
        csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    ) -> None:
        """Requests, tokens and dollars of the whole fleet."""
        asked: dict[str, Any] = {
            "by": by, "since": since, "until": until, "client": client, "team": team, "key": key, "provider": provider,
            "model": model,
        }  # fmt: skip
        if csv:
            typer.echo(service.get("/usage", format="csv", **asked), nl=False)
            return
        columns = ("requests", "served", "denied", "failed", "input_tokens", "output_tokens", "cost_usd")
        rows = service.pages("/usage", "usage", **asked)
        service.table(rows, (*(name.strip() for name in by.split(",")), *columns), name="usage")

    @command(app, "decisions")
    def decisions(
        service: Service,
        limit: Limit = 20,
        key: Annotated[str | None, typer.Option("--key", help="Only those for this key.")] = None,
        provider: Annotated[str | None, typer.Option("--provider", help="Only those for this provider.")] = None,
        only: Annotated[str | None, typer.Option("--only", help="Only those: refused or retried.")] = None,
    ) -> None:
        """The latest decisions of all workers, newest first."""
        found = service.pages("/decisions", "decisions", limit=limit, key_id=key, provider_id=provider, only=only)
        columns = ("timestamp", "request_id", "model", "selected_provider_id", "selected_key_id", "attempts")
        service.table(found, columns, name="decisions")

    @command(app, "reservations")
    def reservations(service: Service, limit: Limit = 100) -> None:
        """What is held right now."""
        found = service.pages("/reservations", "reservations", limit=limit)
        service.table(found, ("id", "created_at", "deadline", "held_usd", "lanes"), name="reservations")


def _add_suspense(app: typer.Typer) -> None:
    suspense = typer.Typer(help="Money of requests whose end was never told.", no_args_is_help=True)
    app.add_typer(suspense, name="suspense")

    @command(suspense, "list")
    def list_suspense(service: Service) -> None:
        """What is in suspense."""
        service.table(
            service.pages("/suspense", "suspense"), ("id", "created_at", "held_usd", "lanes"), name="suspense"
        )

    @command(suspense, "resolve")
    def resolve(
        service: Service,
        reservation_id: Annotated[str, typer.Argument(help="Its id.")],
        refund: Annotated[bool, typer.Option("--refund/--charge", help="Was it spent?")] = False,
        cost: Annotated[
            float | None,
            typer.Option(
                "--cost", min=0, max=DOLLARS_MAX, callback=finite, help="What it did cost; absent: what is held."
            ),
        ] = None,
    ) -> None:
        """Say what became of it."""
        body: dict[str, object] = {"action": "refund" if refund else "charge"}
        if cost is not None:
            body["cost_usd"] = cost
        told = service.send("POST", f"/suspense{path_of(reservation_id)}/resolve", body)
        service.document(told, line=f"{told['action']}: ${told['cost_usd']}")
