"""The management plane under `/api/v1`: keys, providers, state, configuration."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter_proxy.access import CurrentRuntime, require_operator
from apikeyrouter_proxy.runtime import Runtime

__all__ = ["aliases", "management"]

MATERIAL_LENGTH_MAX = 8192
NAME_LENGTH_MAX = 256
REASON_LENGTH_MAX = 1000
FOR_SECONDS_MAX = 366 * 24 * 3600

management = APIRouter(prefix="/api/v1", tags=["management"], dependencies=[Depends(require_operator)])
aliases = APIRouter(tags=["management"], dependencies=[Depends(require_operator)])
"""The documents' short names."""

KeyId = Annotated[str, Path(min_length=1, max_length=NAME_LENGTH_MAX)]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class NewKey(_Input):
    """A key to register."""

    key_material: Annotated[SecretStr, Field(min_length=1, max_length=MATERIAL_LENGTH_MAX)]
    provider_id: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)]
    metadata: dict[str, Any] = Field(default_factory=dict)


class NewState(_Input):
    """A state for a key; `for_seconds` is how long a throttled or exhausted key stays out."""

    state: str
    reason: Annotated[str, Field(max_length=REASON_LENGTH_MAX)] = ""
    for_seconds: Annotated[float, Field(gt=0, le=FOR_SECONDS_MAX, allow_inf_nan=False)] | None = None


class NewMaterial(_Input):
    """What a key is rotated to."""

    key_material: Annotated[SecretStr, Field(min_length=1, max_length=MATERIAL_LENGTH_MAX)]


@management.post("/keys", status_code=201)
@aliases.post("/keys", status_code=201)
async def register_key(runtime: CurrentRuntime, new: NewKey) -> dict[str, Any]:
    """Register a key; the same material and provider give the same key. The answer has everything but the material."""
    key = await runtime.router.key_manager.register_key(
        new.key_material.get_secret_value(), new.provider_id, new.metadata
    )
    return _shown(key)


@management.get("/keys")
async def list_keys(runtime: CurrentRuntime, provider_id: str | None = None) -> dict[str, Any]:
    """Every key, or those of a provider, oldest first."""
    keys = await runtime.router.key_manager.list_keys(provider_id)
    return {"keys": [_shown(key) for key in keys], "total": len(keys)}


@management.get("/keys/{key_id}")
async def get_key(runtime: CurrentRuntime, key_id: KeyId) -> dict[str, Any]:
    """One key."""
    return _shown(await _found(runtime, key_id))


@management.patch("/keys/{key_id}")
async def update_key(runtime: CurrentRuntime, key_id: KeyId, new: NewState) -> dict[str, Any]:
    """Change a key's state, where the change is legal."""
    await _found(runtime, key_id)
    await runtime.router.key_manager.update_key_state(
        key_id, new.state, new.reason, actor="operator", for_seconds=new.for_seconds
    )
    return _shown(await _found(runtime, key_id))


@management.delete("/keys/{key_id}", status_code=204)
async def revoke_key(runtime: CurrentRuntime, key_id: KeyId) -> Response:
    """Forget a key; requests under way with it end as they do."""
    await _found(runtime, key_id)
    await runtime.router.key_manager.revoke_key(key_id)
    return Response(status_code=204)


@management.post("/keys/{key_id}/rotate")
async def rotate_key(runtime: CurrentRuntime, key_id: KeyId, new: NewMaterial) -> dict[str, Any]:
    """Give a key new material under its old id."""
    await _found(runtime, key_id)
    return _shown(await runtime.router.key_manager.rotate_key(key_id, new.key_material.get_secret_value()))


@management.get("/providers")
async def list_providers(runtime: CurrentRuntime) -> dict[str, Any]:
    """The registered providers, with how many keys each has."""
    catalogue = runtime.router.catalogue
    counts: dict[str, int] = dict.fromkeys(catalogue.providers, 0)
    for key in catalogue.keys.values():
        counts[key.provider_id] = counts.get(key.provider_id, 0) + 1
    return {"providers": [{"id": name, "keys": count} for name, count in counts.items()], "total": len(counts)}


@management.get("/state")
@aliases.get("/state")
async def state(runtime: CurrentRuntime) -> dict[str, Any]:
    """Keys, quotas and costs in a few numbers."""
    summary = await runtime.router.get_state_summary()
    shown: dict[str, Any] = summary.model_dump(mode="json")
    return shown


@management.post("/config/reload")
async def reload(runtime: CurrentRuntime) -> dict[str, Any]:
    """Read the configuration file again: all of it is taken over, or nothing and the complaints say why."""
    compiled = await runtime.reload()
    return {
        "keys": len(compiled.keys),
        "clients": len(compiled.clients),
        "budgets": len(compiled.budgets),
        "warnings": list(compiled.warnings),
    }


async def _found(runtime: Runtime, key_id: str) -> APIKey:
    key = await runtime.router.key_manager.get_key(key_id)
    if key is None:
        raise HTTPException(404, f"no key {key_id!r}")
    return key


def _shown(key: APIKey) -> dict[str, Any]:
    return key.public()
