"""Provider keys: registered, shown without their material, brought in and out, rotated, probed, revoked."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field, SecretStr

from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.admin_keys import Role
from apikeyrouter_proxy.management.desk import (
    AdminDesk,
    Desk,
    Input,
    Made,
    OperateDesk,
    Page,
    ReadDesk,
    Resource,
    page_of,
)

__all__ = ["aliases", "routes"]

MATERIAL_LENGTH_MAX = 8192
NAME_LENGTH_MAX = 256
REASON_LENGTH_MAX = 1000
FOR_SECONDS_MAX = 366 * 24 * 3600

routes, aliases = APIRouter(), APIRouter()
KEY = Resource(
    kind="key",
    counted=frozenset({"usage_count", "failure_count", "last_used_at", "updated_at", "organization", "merged_group"}),
)
KeyId = Annotated[str, Path(min_length=1, max_length=NAME_LENGTH_MAX)]
Material = Annotated[SecretStr, Field(min_length=1, max_length=MATERIAL_LENGTH_MAX)]


class NewKey(Input):
    """A key to register."""

    key_material: Material
    provider_id: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)]
    metadata: dict[str, Any] = Field(default_factory=dict)


class KeyUpdate(Input):
    """A state for a key, or other metadata, or both. `for_seconds`: how long a throttled or exhausted key stays out."""

    state: str | None = None
    reason: Annotated[str, Field(max_length=REASON_LENGTH_MAX)] = ""
    for_seconds: Annotated[float, Field(gt=0, le=FOR_SECONDS_MAX, allow_inf_nan=False)] | None = None
    metadata: dict[str, Any] | None = None


class NewMaterial(Input):
    """What a key is rotated to."""

    key_material: Material


@routes.post("/keys", status_code=201)
@aliases.post("/keys", status_code=201)
async def register_key(desk: AdminDesk, new: NewKey) -> Response:
    """Register a key. The answer has everything but the material. The same material and provider again: the same key,
    with the new metadata."""

    async def make() -> Made:
        material = check_material(new.key_material.get_secret_value())
        known = await desk.router.key_manager.get_key(derive_key_id(material, provider_id=new.provider_id))
        key = await desk.router.key_manager.register_key(material, new.provider_id, new.metadata)
        if known is not None and known.metadata != key.metadata:
            await desk.note("key", key.id, "updated", {"changed": {"metadata": [known.metadata, key.metadata]}})
        return Made(id=key.id, shown=key.public(), is_new=known is None)

    return await desk.create(KEY, new, make, again=201)


@routes.get("/keys")
async def list_keys(
    desk: ReadDesk, page: Page, provider_id: str | None = None, state: str | None = None
) -> dict[str, Any]:
    """Every key, or those of a provider, or in a state; oldest first."""
    keys = await desk.router.key_manager.list_keys(provider_id)
    return page_of("keys", (key.public() for key in keys if state in (None, key.state.value)), page, by=_age)


@routes.get("/transitions")
async def list_transitions(desk: ReadDesk, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """What became of keys lately, newest first: of all keys."""
    found = await desk.router.key_manager.get_transitions(limit=limit)
    return {"transitions": [one.model_dump(mode="json") for one in reversed(found)]}


@routes.get("/keys/{key_id:name}/transitions")
async def get_transitions(
    desk: ReadDesk, key_id: KeyId, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """What became of a key, newest first: registration, states with their reasons, rotation, revocation."""
    found = await desk.router.key_manager.get_transitions(key_id, limit=limit)
    return {"transitions": [one.model_dump(mode="json") for one in reversed(found)]}


@routes.get("/keys/{key_id:name}")
async def get_key(desk: ReadDesk, key_id: KeyId) -> Response:
    """One key."""
    return KEY.answer((await _found(desk, key_id)).public())


@routes.patch("/keys/{key_id:name}")
async def update_key(desk: OperateDesk, key_id: KeyId, new: KeyUpdate) -> Response:
    """Change a key's state, where the change is legal, or its metadata (role admin)."""
    if new.state is None and new.metadata is None:
        raise Refused(400, "invalid_request", "state: is required, or metadata", param="state")
    if new.metadata is not None and desk.operator.role < Role.ADMIN:
        raise Refused(403, "role_too_small", "changing metadata takes the role admin")

    async def write() -> None:
        manager = desk.router.key_manager
        if new.metadata is not None:
            await _put_metadata(desk, key_id, new.metadata)
        if new.state is not None:
            await manager.update_key_state(
                key_id, new.state, new.reason, actor=desk.operator.name, for_seconds=new.for_seconds
            )

    return await desk.change(KEY, key_id, lambda: _shown(desk, key_id), write)


@routes.delete("/keys/{key_id:name}", status_code=204, response_class=Response)
async def revoke_key(desk: AdminDesk, key_id: KeyId) -> Response:
    """Forget a key; requests under way with it end as they do."""

    async def remove() -> None:
        if any(key.id == key_id for key in desk.runtime.config.keys):
            raise Refused(
                409, "declared_in_file", f"key {key_id!r} is declared in the configuration file; remove it there"
            )
        await desk.router.key_manager.revoke_key(key_id, actor=desk.operator.name)

    return await desk.delete(KEY, key_id, lambda: _shown(desk, key_id), remove)


@routes.post("/keys/{key_id:name}/rotate")
async def rotate_key(desk: AdminDesk, key_id: KeyId, new: NewMaterial) -> Response:
    """Give a key new material under its old id."""

    async def write() -> None:
        material = new.key_material.get_secret_value()
        await desk.router.key_manager.rotate_key(key_id, material, actor=desk.operator.name)

    return await desk.change(KEY, key_id, lambda: _shown(desk, key_id), write, action="rotated")


@routes.post("/keys/{key_id:name}/probe")
async def probe_key(desk: OperateDesk, key_id: KeyId) -> dict[str, Any]:
    """Ask the provider's free endpoint whether it takes the key, and act on what it says."""
    await _found(desk, key_id)
    probe = await desk.router.key_manager.probe_key(key_id, actor=desk.operator.name)
    await desk.note("key", key_id, "probed", {"works": probe.works})
    told = asdict(probe)
    return {**told, "state": probe.state.value, "checked_at": probe.checked_at.isoformat()}


def _age(shown: dict[str, Any]) -> str:
    return f"{shown['created_at']} {shown['id']}"


async def _put_metadata(desk: Desk, key_id: str, metadata: dict[str, Any]) -> None:
    """Registering what is known under its id changes the metadata alone."""
    key = desk.router.catalogue.keys.get(key_id)
    if key is None:
        raise Refused(409, "key_not_readable", f"this worker cannot open key {key_id}; its log says why")
    material = str.__str__(key.material)
    await desk.router.key_manager.register_key(material, key.provider_id, metadata, key_id=key_id)


async def _found(desk: Desk, key_id: str) -> APIKey:
    key = await desk.router.key_manager.get_key(key_id)
    if key is None:
        raise Refused(404, "not_found", f"no key {key_id!r}")
    return key


async def _shown(desk: Desk, key_id: str) -> dict[str, Any]:
    return (await _found(desk, key_id)).public()
