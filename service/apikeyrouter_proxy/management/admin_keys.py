"""Admin keys: named, with a role, shown once."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime

from apikeyrouter.domain.models.client import NewName
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.admin_keys import FIRST, AdminKey, RoleName, new_token, token_sha256
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, Resource, by_name, page_of

__all__ = ["routes"]

TOKEN_PREFIX = "akr-admin"  # noqa: S105 (what tokens begin with)

routes = APIRouter()
ADMIN_KEY = Resource(kind="admin_key")
Name = Annotated[str, Path(min_length=1, max_length=64)]


class NewAdminKey(Input):
    """An admin key to make. Roles: read looks, operate runs (key states, suspense, reload), admin changes all."""

    name: NewName
    role: RoleName
    expires_at: AwareDatetime | None = None


class AdminKeyUpdate(Input):
    """What is to change; the rest stays."""

    role: RoleName | None = None
    expires_at: AwareDatetime | None = None


@routes.post("/admin-keys", status_code=201)
async def create_admin_key(desk: AdminDesk, new: NewAdminKey) -> Response:
    """Make an admin key. The answer is the only one that has it. The same again: 200, without the key."""

    async def make() -> Made:
        await desk.runtime.admin_keys.refresh()
        known = desk.runtime.admin_keys.named.get(new.name)
        if known is not None and (known.role, known.expires_at) == (new.role, new.expires_at):
            return Made(id=new.name, shown=known.public(), is_new=False)
        if known is not None or new.name == FIRST:
            raise Refused(409, "name_taken", f"admin key {new.name!r} exists; PATCH changes it", param="name")
        token = new_token(TOKEN_PREFIX)
        key = AdminKey(name=new.name, role=new.role, expires_at=new.expires_at, token_sha256=token_sha256(token))
        await desk.runtime.admin_keys.put(key)
        return Made(id=new.name, shown=key.public(), secret={"key": token})

    return await desk.create(ADMIN_KEY, new, make)


@routes.get("/admin-keys")
async def list_admin_keys(desk: AdminDesk, page: Page) -> dict[str, Any]:
    """Every named admin key. Never the keys themselves; MANAGEMENT_API_KEY is not among them."""
    await desk.runtime.admin_keys.refresh()
    return page_of("admin_keys", (key.public() for key in desk.runtime.admin_keys.named.values()), page, by=by_name)


@routes.get("/admin-keys/{name:name}")
async def get_admin_key(desk: AdminDesk, name: Name) -> Response:
    """One admin key."""
    return ADMIN_KEY.answer((await _found(desk, name)).public())


@routes.patch("/admin-keys/{name:name}")
async def update_admin_key(desk: AdminDesk, name: Name, new: AdminKeyUpdate) -> Response:
    """Change a role, or when the key ends."""

    async def write() -> None:
        key = await _found(desk, name)
        news = {field: getattr(new, field) for field in new.model_fields_set}
        await desk.runtime.admin_keys.put(AdminKey(**{**dict(key), **news}))

    return await desk.change(ADMIN_KEY, name, lambda: _shown(desk, name), write)


@routes.post("/admin-keys/{name:name}/rotate")
async def rotate_admin_key(desk: AdminDesk, name: Name) -> Response:
    """A new key under the name, shown this once; the old one is refused from now on."""

    async def write() -> dict[str, Any]:
        key, token = await _found(desk, name), new_token(TOKEN_PREFIX)
        news = {"token_sha256": token_sha256(token), "created_at": datetime.now(UTC)}
        await desk.runtime.admin_keys.put(AdminKey(**{**dict(key), **news}))
        return {"key": token}

    return await desk.change(ADMIN_KEY, name, lambda: _shown(desk, name), write, action="rotated")


@routes.delete("/admin-keys/{name:name}", status_code=204, response_class=Response)
async def delete_admin_key(desk: AdminDesk, name: Name) -> Response:
    """Refuse that key from now on; elsewhere within a second."""
    return await desk.delete(ADMIN_KEY, name, lambda: _shown(desk, name), lambda: desk.runtime.admin_keys.drop(name))


async def _shown(desk: Desk, name: str) -> dict[str, Any]:
    return (await _found(desk, name)).public()


async def _found(desk: Desk, name: str) -> AdminKey:
    await desk.runtime.admin_keys.refresh()
    key = desk.runtime.admin_keys.named.get(name)
    if key is None:
        raise Refused(404, "not_found", f"no admin key {name!r}")
    return key
