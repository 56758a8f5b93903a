"""Policies: what may serve whom, and at what cost. Checked, tried out against recent requests, put into force."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, Field

from apikeyrouter.domain.models.names import addressable
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, ReadDesk, Resource, page_of

__all__ = ["aliases", "routes"]

routes, aliases = APIRouter(), APIRouter()
POLICY = Resource(kind="policy", counted=frozenset({"counts"}))
PolicyId = Annotated[str, Path(min_length=1, max_length=256)]
Named = Annotated[str, Field(min_length=1, max_length=256)]


class PolicyBody(Input):
    """A policy; see the page on policies for its rules. `id` is made from the name where it is not given."""

    name: Named
    id: Annotated[Named, AfterValidator(addressable)] | None = None
    type: str | None = None
    scope: str | None = None
    scope_id: Named | None = None
    scope_value: Named | None = None
    rules: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    enforcement: Literal["hard", "soft", "shadow"] | None = None
    priority: int | None = None
    enabled: bool | None = None

    def policy(self) -> Policy:
        """The policy. Raises InvalidRequestError naming the field."""
        return Policy(**self.model_dump(exclude_none=True))


class PolicyUpdate(Input):
    """What is to change of a policy; the rest stays."""

    name: Named | None = None
    type: str | None = None
    scope: str | None = None
    scope_id: Named | None = None
    rules: dict[str, Any] | list[dict[str, Any]] | None = None
    enforcement: Literal["hard", "soft", "shadow"] | None = None
    priority: int | None = None
    enabled: bool | None = None


class Trial(Input):
    """A policy to try out. `context`: a request to try it on (model, provider_id, team, client)."""

    policy: PolicyBody
    context: dict[str, Any] | None = None


@routes.post("/policies", status_code=201)
@aliases.post("/policies", status_code=201)
async def create_policy(desk: AdminDesk, new: PolicyBody) -> Response:
    """Put a policy into force: here at once, elsewhere within a second. The same again: 200; another of its id: 409."""

    async def make() -> Made:
        policy = new.policy()
        known = await desk.router.policy_engine.get_policy(policy.id)
        if known is not None:
            shown = await _shown(desk, policy.id)
            if known == policy and shown["source"] == "api":
                return Made(id=policy.id, shown=shown, is_new=False)
            raise Refused(
                409, "name_taken", f"policy {policy.id!r} exists with other rules; PATCH changes it", param="id"
            )
        await desk.router.policy_engine.configure(policy)
        return Made(id=policy.id, shown=await _shown(desk, policy.id))

    return await desk.create(POLICY, new, make)


@routes.post("/policies/validate")
async def validate_policy(desk: ReadDesk, policy: PolicyBody) -> dict[str, Any]:
    """Whether a policy is sound: every error, and warnings of names that nobody knows and of contradictions."""
    found = await desk.router.policy_engine.validate_policy(policy.model_dump(exclude_none=True))
    shown: dict[str, Any] = found.model_dump(mode="json")
    return shown


@routes.post("/policies/dry-run")
async def dry_run_policy(desk: ReadDesk, trial: Trial) -> dict[str, Any]:
    """What a policy would change, for a request and for the recent requests of all workers."""
    impact = await desk.router.policy_engine.dry_run_policy(trial.policy.policy(), trial.context)
    shown: dict[str, Any] = impact.model_dump(mode="json")
    return {**shown, "cost_difference": str(impact.cost_difference)}


@routes.get("/policies")
async def list_policies(desk: ReadDesk, page: Page, scope: str | None = None) -> dict[str, Any]:
    """Every policy, those that are switched off included."""
    found = await desk.router.policy_engine.list_policies()
    shown = [await _show(desk, policy) for policy in found if scope in (None, policy.scope.value)]
    return page_of("policies", shown, page)


@routes.get("/policies/{policy_id:name}")
async def get_policy(desk: ReadDesk, policy_id: PolicyId) -> Response:
    """One policy, with what it did in the worker that answers."""
    return POLICY.answer(await _shown(desk, policy_id))


@routes.patch("/policies/{policy_id:name}")
async def update_policy(desk: AdminDesk, policy_id: PolicyId, new: PolicyUpdate) -> Response:
    """Change a policy that was made here; all of it is checked again."""
    told = {name: getattr(new, name) for name in new.model_fields_set}

    async def write() -> None:
        policy = await _own(desk, policy_id)
        await desk.router.policy_engine.configure(Policy(**{**policy.model_dump(mode="json"), **told}))

    return await desk.change(POLICY, policy_id, lambda: _shown(desk, policy_id), write)


@routes.delete("/policies/{policy_id:name}", status_code=204, response_class=Response)
async def delete_policy(desk: AdminDesk, policy_id: PolicyId) -> Response:
    """Take a policy that was made here out of force."""

    async def remove() -> None:
        await _own(desk, policy_id)
        await desk.router.policy_engine.delete_policy(policy_id)

    return await desk.delete(POLICY, policy_id, lambda: _shown(desk, policy_id), remove)


async def _own(desk: Desk, id: str) -> Policy:
    policy = await _found(desk, id)
    if _source(desk, id) != "api":
        raise Refused(409, "declared_elsewhere", f"policy {id!r} is declared by a {_source(desk, id)}; change it there")
    return policy


async def _found(desk: Desk, id: str) -> Policy:
    policy = await desk.router.policy_engine.get_policy(id)
    if policy is None:
        raise Refused(404, "not_found", f"no policy {id!r}")
    return policy


def _source(desk: Desk, id: str) -> str:
    if id in {policy.id for policy in desk.runtime.config.policies}:
        return "file"
    return "client" if any(policy.id == id for policy in desk.router.client_policies()) else "api"


async def _shown(desk: Desk, id: str) -> dict[str, Any]:
    return await _show(desk, await _found(desk, id))


async def _show(desk: Desk, policy: Policy) -> dict[str, Any]:
    counts = await desk.router.policy_engine.get_counts(policy.id)
    return {**policy.model_dump(mode="json"), "source": _source(desk, policy.id), "counts": counts.model_dump()}
