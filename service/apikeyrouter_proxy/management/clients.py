"""Clients (virtual keys): who may call the data plane, what it may ask for, and how much. A token is shown once."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, Field, SecretStr

from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.client import NAMES_MAX, WEIGHT_MAX, Client, NewName, Priority
from apikeyrouter.infrastructure.config.compiled import ClientRecord
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.admin_keys import new_token, token_sha256
from apikeyrouter_proxy.management.budgets import ClientBudget, remove_budgets, replace_budgets
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, ReadDesk, Resource, by_name, page_of

__all__ = ["routes"]

TOKEN_PREFIX = "akr"  # noqa: S105 (what tokens begin with)
TOKEN_LENGTH_MIN, TOKEN_LENGTH_MAX = 20, 512
GRACE_SECONDS_MAX = 30 * 86_400

routes = APIRouter()
CLIENT = Resource(kind="client", counted=frozenset({"budget_ids"}))
Name = Annotated[str, Path(min_length=1, max_length=64)]
Named = Annotated[str, Field(min_length=1, max_length=256)]
Amount = Annotated[int, Field(ge=1, le=AMOUNT_MAX, strict=True)]
Token = Annotated[SecretStr, Field(min_length=TOKEN_LENGTH_MIN, max_length=TOKEN_LENGTH_MAX)]


class ClientSettings(Input):
    """What may be set of a client, and changed later. What is left out stays as it is; null takes it away."""

    team: Named | None = None
    models: Annotated[list[Named], Field(max_length=NAMES_MAX)] | None = None
    providers: Annotated[list[Named], Field(min_length=1, max_length=NAMES_MAX)] | None = None
    rpm: Amount | None = None
    tpm: Amount | None = None
    concurrency: Amount | None = None
    weight: Annotated[float, Field(gt=0, le=WEIGHT_MAX, allow_inf_nan=False)] = 1.0
    priority: Priority = "interactive"
    enabled: bool = True
    expires_at: AwareDatetime | None = None
    budgets: Annotated[list[ClientBudget], Field(max_length=4)] | None = None

    def told(self) -> dict[str, Any]:
        """What was said of the client itself."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"budgets", "name", "token"}}


class NewClient(ClientSettings):
    """A client to make. `token`: one that you bring along; absent, one is made and shown this once."""

    name: NewName
    token: Token | None = None


class Rotation(Input):
    """`grace_seconds`: how long the old token is taken too. `token`: one that you bring along."""

    grace_seconds: Annotated[int, Field(ge=0, le=GRACE_SECONDS_MAX, strict=True)] = 0
    token: Token | None = None


@routes.post("/clients", status_code=201)
async def create_client(desk: AdminDesk, new: NewClient) -> Response:
    """Make a client. The answer is the only one that has its token. The same again: 200, without the token."""

    async def make() -> Made:
        known = await _find(desk, new.name)
        if known is not None:
            return _same(new, known)
        token = new_token(TOKEN_PREFIX) if new.token is None else new.token.get_secret_value()
        _refuse_taken(desk, token)
        client = Client(name=new.name, token_sha256=token_sha256(token), **new.told())
        await desk.router.configure_client(client)
        try:
            await replace_budgets(desk, new.name, new.budgets or [])
        except BaseException:
            await desk.router.revoke_client(new.name)
            raise
        return Made(id=new.name, shown=await _shown(desk, new.name), secret={"token": token})

    return await desk.create(CLIENT, new, make)


@routes.get("/clients")
async def list_clients(desk: ReadDesk, page: Page, team: str | None = None) -> dict[str, Any]:
    """Every client, of the configuration file and made here, or those of a team. Never their tokens."""
    everybody = await _everybody(desk)
    found = (shown for shown in everybody.values() if team in (None, shown["team"]))
    return page_of("clients", found, page, by=by_name)


@routes.get("/clients/{name:name}")
async def get_client(desk: ReadDesk, name: Name) -> Response:
    """One client."""
    return CLIENT.answer(await _shown(desk, name))


@routes.patch("/clients/{name:name}")
async def update_client(desk: AdminDesk, name: Name, new: ClientSettings) -> Response:
    """Change a client's settings; `budgets` replaces those that it was made with."""

    async def write() -> None:
        client = _own(desk, name)
        await desk.router.configure_client(Client(**{**dict(client), **new.told()}))
        if "budgets" in new.model_fields_set:
            await replace_budgets(desk, name, new.budgets or [])

    return await desk.change(CLIENT, name, lambda: _shown(desk, name), write)


@routes.post("/clients/{name:name}/rotate")
async def rotate_client(desk: AdminDesk, name: Name, rotation: Rotation) -> Response:
    """Give a client a new token, shown this once. The old one is refused at once, or after `grace_seconds`."""

    async def write() -> dict[str, Any]:
        client = _own(desk, name)
        token = new_token(TOKEN_PREFIX) if rotation.token is None else rotation.token.get_secret_value()
        _refuse_taken(desk, token)
        now, grace = datetime.now(UTC), rotation.grace_seconds
        old = {"old_token_sha256": client.token_sha256, "old_token_until": now + timedelta(seconds=grace)}
        gone = {"old_token_sha256": None, "old_token_until": None}
        news = {"token_sha256": token_sha256(token), "rotated_at": now, **(old if grace else gone)}
        await desk.router.configure_client(Client(**{**dict(client), **news}))
        return {"token": token}

    return await desk.change(CLIENT, name, lambda: _shown(desk, name), write, action="rotated")


@routes.delete("/clients/{name:name}", status_code=204, response_class=Response)
async def revoke_client(desk: AdminDesk, name: Name) -> Response:
    """Forget a client and the budgets that it was made with; its requests under way end as they do."""

    async def remove() -> None:
        _own(desk, name)
        await desk.router.revoke_client(name)
        await remove_budgets(desk, name)

    return await desk.delete(CLIENT, name, lambda: _shown(desk, name), remove)


def _same(new: NewClient, known: dict[str, Any]) -> Made:
    """There is such a client: as it was asked for, or the name is taken."""
    wanted = new.model_dump(mode="json", exclude={"token", "budgets"})
    if known["source"] == "api" and all(known.get(name) == value for name, value in wanted.items()):
        return Made(id=new.name, shown=known, is_new=False)
    raise Refused(409, "name_taken", f"client {new.name!r} exists with other settings; PATCH changes it", param="name")


def _refuse_taken(desk: Desk, token: str) -> None:
    digest = token_sha256(token)
    of_file = {record.token_sha256 for record in desk.runtime.config.clients}
    made = {known for one in desk.router.clients.values() for known in (one.token_sha256, one.old_token_sha256)}
    if digest in of_file | made:
        raise Refused(409, "token_taken", "that token is another client's", param="token")


def _own(desk: Desk, name: str) -> Client:
    """A client that can be changed here."""
    client = desk.router.clients.get(name)
    if client is None or name in desk.runtime.plane.clients.file_names:
        raise Refused(
            409, "declared_in_file", f"client {name!r} is declared in the configuration file; change it there"
        )
    return client


async def _find(desk: Desk, name: str) -> dict[str, Any] | None:
    return (await _everybody(desk)).get(name)


async def _shown(desk: Desk, name: str) -> dict[str, Any]:
    found = await _find(desk, name)
    if found is None:
        raise Refused(404, "not_found", f"no client {name!r}")
    return found


async def _everybody(desk: Desk) -> dict[str, dict[str, Any]]:
    clients = await desk.router.list_clients()
    made = {name: {**client.public(), "source": "api"} for name, client in clients.items()}
    of_file = {record.name: _of_file(record) for record in desk.runtime.config.clients}
    everybody = {**made, **of_file}
    for name, shown in everybody.items():
        shown["budget_ids"] = []
        shown["name"] = name
    for rule in desk.router.catalogue.budget_rules().values():
        if rule.kind == BudgetScope.Client.value and rule.target in everybody:
            everybody[rule.target]["budget_ids"].append(rule.scope.id)
    return everybody


def _of_file(record: ClientRecord) -> dict[str, Any]:
    shown = Client(
        name=record.name, team=record.team, models=None if record.models is None else sorted(record.models),
        providers=None if record.providers is None else list(record.providers), rpm=record.rpm, tpm=record.tpm,
        concurrency=record.concurrency, weight=record.weight, priority=record.priority, expires_at=record.expires_at,
        token_sha256=record.token_sha256,
    ).public()  # fmt: skip
    return {**shown, "created_at": None, "source": "file"}
