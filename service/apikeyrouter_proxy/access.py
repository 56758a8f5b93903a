"""What management and operations endpoints depend on: the running service, and an operator with a role."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader

from apikeyrouter_proxy.admin_keys import Operator, Role
from apikeyrouter_proxy.runtime import Runtime

if TYPE_CHECKING:
    from apikeyrouter_proxy.main import Service

__all__ = ["CurrentRuntime", "Refused", "require"]

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="MANAGEMENT_API_KEY, or a named admin key")


class Refused(HTTPException):
    """A management request is refused; `code` names the reason for programs, `param` the field."""

    def __init__(
        self,
        status_code: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.code = code
        self.param = param


async def _runtime(request: Request) -> Runtime:
    service: Service = request.app
    return await service.opened()


CurrentRuntime = Annotated[Runtime, Depends(_runtime)]


def require(role: Role) -> Callable[..., Awaitable[Operator]]:
    """A dependency that lets an operator of at least that role through.

    404 when management is switched off, 403 when it has no key, or this operator's role is too small, 401 for a wrong
    key.
    """

    async def operator(runtime: CurrentRuntime, given: Annotated[str | None, Security(_header)]) -> Operator:
        if not runtime.settings.management_api_enabled:
            raise Refused(404, "management_off", "the management API is off; MANAGEMENT_API_ENABLED=true turns it on")
        if not runtime.admin_keys:
            raise Refused(
                403, "no_management_key",
                "the management API has no key; set MANAGEMENT_API_KEY and send it as X-API-Key",
            )  # fmt: skip
        found = runtime.admin_keys.identify(given)
        if found is None:
            raise Refused(
                401, "unauthorized", "X-API-Key is missing or wrong", headers={"www-authenticate": "X-API-Key"}
            )
        if found.role < role:
            raise Refused(
                403, "role_too_small",
                f"this takes the role {role.name.lower()}; admin key {found.name!r} has {found.role.name.lower()}",
            )  # fmt: skip
        return found

    return operator
