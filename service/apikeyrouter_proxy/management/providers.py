"""Providers: which there are, where they are, and how they fare; those registered here, changed."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, Field

from apikeyrouter.domain.components.catalogue import provider_lane
from apikeyrouter.domain.models.names import addressable
from apikeyrouter.infrastructure.config.stated import StatedProvider
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, ReadDesk, Resource, page_of

__all__ = ["routes"]

routes = APIRouter()
PROVIDER = Resource(
    kind="provider", counted=frozenset({"keys", "breaker", "in_flight", "requests_total", "failures_total"})
)
ProviderId = Annotated[str, Path(min_length=1, max_length=256)]
Named = Annotated[str, Field(min_length=1, max_length=64)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Options = Annotated[dict[str, Any], Field(max_length=32)]


class ProviderUpdate(Input):
    """What is to change of a provider; the rest stays. `options` are the adapter's own; `timeouts` and
    `breaker_settings` are as a configuration file has them under `timeouts` and `breaker`, as is `connections_max`."""

    adapter: Named | None = None
    base_url: Url | None = None
    options: Options | None = None
    timeouts: dict[str, int | None] | None = None
    breaker_settings: dict[str, int] | None = None
    connections_max: int | None = None

    def told(self) -> dict[str, Any]:
        """What was said."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}


class NewProvider(ProviderUpdate):
    """A provider to register: which adapter talks to it, and where."""

    id: Annotated[Named, AfterValidator(addressable)]
    adapter: Named

    def stated(self) -> StatedProvider:
        """The provider. Raises InvalidRequestError naming the field."""
        return StatedProvider(**self.told())


@routes.post("/providers", status_code=201)
async def register_provider(desk: AdminDesk, new: NewProvider) -> Response:
    """Register a provider: here at once, elsewhere within a second. The same again: 200."""
    stated = new.stated()

    async def make() -> Made:
        known = desk.router.stated_providers.get(stated.id)
        if known is not None and _settings(known) == _settings(stated):
            return Made(id=stated.id, shown=await _found(desk, stated.id), is_new=False)
        if known is not None or _source(desk, stated.id) not in (None, "builtin"):
            raise Refused(409, "name_taken", f"provider {stated.id!r} is registered with other settings", param="id")
        await _put(desk, stated)
        return Made(id=stated.id, shown=await _found(desk, stated.id))

    return await desk.create(PROVIDER, new, make)


@routes.get("/providers")
async def list_providers(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """The registered providers, with how many keys each has and what its breaker says."""
    paged = page_of("providers", ({"id": id_} for id_ in desk.router.catalogue.providers), page)
    return {**paged, "providers": await _shown(desk, [one["id"] for one in paged["providers"]])}


@routes.get("/providers/{provider_id:name}")
async def get_provider(desk: ReadDesk, provider_id: ProviderId) -> Response:
    """One provider."""
    return PROVIDER.answer(await _found(desk, provider_id))


@routes.patch("/providers/{provider_id:name}")
async def update_provider(desk: AdminDesk, provider_id: ProviderId, new: ProviderUpdate) -> Response:
    """Change a provider that was registered here; requests under way end with the old settings."""

    async def write() -> None:
        known = _own(desk, provider_id)
        await _put(desk, StatedProvider(**{**dict(known), **new.told()}))

    return await desk.change(PROVIDER, provider_id, lambda: _found(desk, provider_id), write)


@routes.delete("/providers/{provider_id:name}", status_code=204, response_class=Response)
async def forget_provider(desk: AdminDesk, provider_id: ProviderId) -> Response:
    """Forget a provider that was registered here and has no keys. One that there is from the start is as it was."""

    async def remove() -> None:
        _own(desk, provider_id)
        keys = [key.id for key in desk.router.catalogue.keys.values() if key.provider_id == provider_id]
        if keys and not _is_builtin(desk, provider_id):
            raise Refused(409, "in_use", f"provider {provider_id!r} has keys, e.g. {min(keys)}; revoke them first")
        await desk.router.forget_provider(provider_id)

    return await desk.delete(PROVIDER, provider_id, lambda: _found(desk, provider_id), remove)


async def _put(desk: Desk, stated: StatedProvider) -> None:
    """Where a URL came over the network, it must not lead into ours."""
    if stated.base_url is not None:
        await desk.runtime.webhooks.outbound.check_resolved(stated.base_url, field="base_url")
    await desk.router.configure_provider(stated)


async def _found(desk: Desk, provider_id: str) -> dict[str, Any]:
    if provider_id not in desk.router.catalogue.providers:
        raise Refused(404, "not_found", f"no provider {provider_id[:256]!r}")
    return (await _shown(desk, [provider_id]))[0]


def _own(desk: Desk, provider_id: str) -> StatedProvider:
    """A provider that can be changed here."""
    known, source = desk.router.stated_providers.get(provider_id), _source(desk, provider_id)
    if source == "file":
        raise Refused(
            409, "declared_in_file", f"provider {provider_id!r} is in the configuration file; change it there"
        )
    if known is None:
        raise Refused(409, "declared_elsewhere", f"provider {provider_id!r} was not registered here")
    return known


def _is_builtin(desk: Desk, provider_id: str) -> bool:
    record = desk.runtime.config.providers.get(provider_id)
    return record is not None and record.is_plain


def _source(desk: Desk, provider_id: str) -> str | None:
    """Where a provider was registered; None: nowhere."""
    record = desk.runtime.config.providers.get(provider_id)
    if record is not None and not record.is_plain:
        return "file"
    if provider_id in desk.router.stated_providers:
        return "api"
    if record is not None:
        return "builtin"
    return "code" if provider_id in desk.router.catalogue.providers else None


def _settings(stated: StatedProvider) -> dict[str, Any]:
    return stated.model_dump(mode="json", exclude={"id", "created_at"})


async def _shown(desk: Desk, ids: list[str]) -> list[dict[str, Any]]:
    catalogue = desk.router.catalogue
    lanes = {lane.id: lane for lane in await desk.router.ledger.lanes([provider_lane(id_) for id_ in ids])}
    found = []
    for id_ in ids:
        lane = lanes.get(provider_lane(id_))
        found.append(
            {
                "id": id_, **_told(desk, id_),
                "keys": sum(key.provider_id == id_ for key in catalogue.keys.values()),
                "breaker": "closed" if lane is None else lane.breaker,
                "in_flight": 0 if lane is None else lane.in_flight,
                "requests_total": 0 if lane is None else lane.requests_total,
                "failures_total": 0 if lane is None else lane.failures_total,
            }
        )  # fmt: skip
    return found


def _told(desk: Desk, provider_id: str) -> dict[str, Any]:
    """What was said of a provider, wherever that was. A file's options may hold secrets and are not shown."""
    source, record = _source(desk, provider_id), desk.runtime.config.providers.get(provider_id)
    if source == "api":
        return {"connections_max": None, **_settings(desk.router.stated_providers[provider_id]), "source": source}
    return {
        "adapter": None if record is None else record.adapter, "base_url": None if record is None else record.base_url,
        "options": {}, "timeouts": {}, "breaker_settings": {},
        "connections_max": None if record is None else record.connections_max, "source": source,
    }  # fmt: skip
