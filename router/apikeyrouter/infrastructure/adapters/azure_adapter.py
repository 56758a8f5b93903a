"""Azure OpenAI as a provider: `router.register_provider("azure", AzureOpenAIAdapter("https://RES.openai.azure.com"))`."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal
from urllib.parse import quote

from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.openai_wire import STORED_PATHS, OpenAIWire
from apikeyrouter.infrastructure.adapters.profiles import AZURE
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["AzureOpenAIAdapter", "AzureWire"]

API_VERSION = "2024-10-21"
"""The last stable version of the classic API."""
V1 = "v1"
_IN_BODY = frozenset({"responses", *STORED_PATHS})
"""Operations of the classic API whose path names no deployment."""


class AzureWire(OpenAIWire):
    """Azure's variety of OpenAI's dialect: the deployment in the path, the version in the query, the key in `api-key`.

    Args:
        endpoint: `https://RES.openai.azure.com`, with `/openai/v1` for the newer API; absent: AZURE_OPENAI_ENDPOINT.
        api_version: of the classic API (absent: OPENAI_API_VERSION, then 2024-10-21), or "v1" for the newer one.
        deployments: model → deployment, where they differ.
        auth: `api-key`, or `bearer` for Entra ID tokens.
        now: Unix seconds, for dates in answers.

    Raises:
        ConfigurationError: no endpoint.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        api_version: str | None = None,
        deployments: Mapping[str, str] | None = None,
        auth: Literal["api-key", "bearer"] = "api-key",
        inject_usage: bool | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        address = (endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT") or "").rstrip("/")
        if not address:
            raise ConfigurationError("Azure needs an endpoint: pass base_url or set AZURE_OPENAI_ENDPOINT")
        if auth not in ("api-key", "bearer"):
            raise ConfigurationError(f"auth must be api-key or bearer, not {auth!r}")
        version = api_version or os.environ.get("OPENAI_API_VERSION") or API_VERSION
        self._newer = version == V1 or address.endswith("/openai/v1")
        address = address.removesuffix("/v1").removesuffix("/openai") + "/openai"
        super().__init__(address + "/v1" if self._newer else address, AZURE, inject_usage=inject_usage, now=now)
        self._version = f"?api-version={quote(version)}"
        self._deployments = dict(deployments or {})
        self._auth = auth
        self._places: dict[tuple[str, str], str] = {}

    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """`api-key`, or `Authorization: Bearer` for Entra ID."""
        return (("api-key", f"{key}"),) if self._auth == "api-key" else super().credentials(key)

    def models_url(self) -> str:
        """Where models are listed."""
        return super().models_url() if self._newer else super().models_url() + self._version

    def _url(self, parsed: ParsedRequest, operation: str, model: str) -> str:
        if self._newer:
            return self._urls[operation]
        known = self._places.get((operation, model))
        if known is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            known = self._places[operation, model] = self._place(operation, model)
        return known

    def _place(self, operation: str, model: str) -> str:
        path = self.paths[operation]
        if operation not in _IN_BODY:
            path = f"/deployments/{quote(self._deployments.get(model, model), safe='')}{path}"
        return self.base_url + path + self._version

    def _edits(
        self, parsed: ParsedRequest, operation: str, model: str, token_cap: int | None
    ) -> dict[str, bytes | None]:
        return super()._edits(parsed, operation, self._deployments.get(model, model), token_cap)


PLACES_MAX = 512
"""URLs remembered; anybody may ask for models that nobody has heard of."""


class AzureOpenAIAdapter(OpenAIAdapter):
    """Azure OpenAI: one resource, with the deployments in it.

    Args:
        base_url: the endpoint, see `AzureWire`.
        api_version, deployments, auth, inject_usage: see `AzureWire`.
        models: names served; absent: those of `deployments`, or any that is not another family's.

    Raises:
        ConfigurationError: no endpoint.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "azure",
        api_version: str | None = None,
        deployments: Mapping[str, str] | None = None,
        auth: Literal["api-key", "bearer"] = "api-key",
        models: Iterable[str] | None = None,
        inject_usage: bool | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        wire = AzureWire(
            base_url, api_version=api_version, deployments=deployments, auth=auth, inject_usage=inject_usage
        )
        if models is None and deployments:
            models = deployments
        self._setup(wire, provider_id, models, transport, timeouts)
