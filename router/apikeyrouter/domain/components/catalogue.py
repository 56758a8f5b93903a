"""What there is to route to: providers, keys, models and aliases, budgets, and the lanes that meter each choice.

A plain index, rebuilt piece by piece on the control plane and only read on the data plane. Pools are made on first use
and forgotten at every change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from apikeyrouter.domain.components.capacity import Level, worst
from apikeyrouter.domain.components.cells import CellLayout
from apikeyrouter.domain.components.entries import (
    ANY_CLIENT,
    BudgetRule,
    ClientTerms,
    Key,
    ModelPool,
    Provider,
    SharedScopes,
    group_lane,
    key_lane,
    key_price_name,
    provider_lane,
)
from apikeyrouter.domain.components.observations import Observations
from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.policy_pools import narrowed
from apikeyrouter.domain.components.pool import Option, Pool, Turns
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.shares import Shares
from apikeyrouter.domain.components.unserved import Unread, not_found
from apikeyrouter.domain.models.accounting import SHARED_SCOPES_MAX, ScopeConfig
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.capabilities import ModelCapabilities
from apikeyrouter.domain.models.request_intent import refuse_bad_model
from apikeyrouter.domain.models.system_error import REGISTER_FIRST, InvalidRequestError, UnsupportedEndpointError

__all__ = [
    "ANY_CLIENT",
    "BudgetRule",
    "Catalogue",
    "ClientTerms",
    "Key",
    "ModelPool",
    "Provider",
    "SharedScopes",
    "key_lane",
    "key_price_name",
    "provider_lane",
]

POOLS_MAX = 1024
"""Pools remembered; beyond it the memory starts afresh."""
GUESSED, TOLD = 1, 2
"""Why a key is taken to serve a model: its provider's catalogue is a pattern that fits; or somebody says so."""
QUALITY_DEFAULT = 0.5
"""What declares no quality is of middling quality."""
MODELS_OF_KEY_MAX = 256
"""Models of one key that are looked at when none is named."""
OPTIONS_MAX = 200_000
"""Options remembered over all pools: anybody may ask for models that nobody has heard of."""

_Place = tuple[str, str | None, str, str, str, str | None, int | None]
"""Model, provider, dialect, operation, quota group, team, cell: what a pool is for."""


class Catalogue:
    """Indexes of everything configured. Not thread-safe; one event loop owns it."""

    def __init__(self, prices: PriceBook) -> None:
        self.prices = prices
        self.observations = Observations()
        self.providers: dict[str, Provider] = {}
        self.keys: dict[str, Key] = {}
        self.unread: dict[str, Unread] = {}
        """Stored keys that this process cannot route with, by id."""
        self.clients: Mapping[str, ClientTerms] = {}
        """By name, clients that a configuration names; the service's and the library's calls alike."""
        self.shares = Shares()
        """Their weights as the ledger takes them."""
        self.layout: CellLayout | None = None
        """How the accounting is divided into cells; None: there is one."""
        self.qualities: dict[str, float] = {}
        """By model, as the configuration declares it."""
        self.aliases: dict[str, tuple[tuple[str, str], ...]] = {}
        self.version = 0
        """Grows with every change of what `lane_ids` gives."""
        self._declared: dict[tuple[str, str], ModelCapabilities] = {}
        self._model_pools: dict[str, list[ModelPool]] = {}
        self._budgets: dict[tuple[str, str], list[ScopeConfig]] = {}
        self._budget_rules: dict[str, BudgetRule] = {}
        self._pools: dict[_Place, Pool] = {}
        self._turns: dict[_Place, Turns] = {}
        self._teams: frozenset[str] | None = None
        self._narrowed: dict[tuple[Pool, Constraints], Pool] = {}
        self._shared: dict[tuple[str | None, str | None, Constraints | None], SharedScopes] = {}
        self._rates: dict[tuple[str, str, int, bool, int | None], int] = {}
        self._abilities: dict[tuple[str, str], ModelCapabilities] = {}
        self._options_kept = 0

    # --- control plane -------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Forget what was derived; the next request builds it anew."""
        self._shared.clear()
        self._rates.clear()
        self._abilities.clear()
        self._pools.clear()
        self._narrowed.clear()
        self._teams = None
        self._options_kept = 0
        self.version += 1

    def put_providers(self, providers: Iterable[Provider]) -> None:
        """Add or replace providers. One whose id no price list knows costs what its family's models cost."""
        for provider in providers:
            self.providers[provider.id] = provider
            self.prices.assume(provider.id, getattr(provider.wire, "family", ""))
        self.changed()

    def state_changed(self, key_id: str) -> None:
        """A key came or went by its state. Nothing is forgotten: each pool that has it puts itself right."""
        for pool in (*self._pools.values(), *self._narrowed.values()):
            pool.moved(key_id)

    def put_keys(self, keys: Iterable[Key]) -> None:
        """Add or replace keys."""
        self.keys.update((key.id, key) for key in keys)
        self.changed()

    def drop_key(self, key_id: str) -> None:
        """Remove a key; requests under way with it end as they do."""
        self.keys.pop(key_id, None)
        self.changed()

    def set_aliases(
        self,
        aliases: Mapping[str, tuple[tuple[str, str], ...]],
        declared: Mapping[tuple[str, str], ModelCapabilities],
    ) -> None:
        """Replace all names that stand for models (provider, model), and what was declared of what these can do."""
        if (self.aliases, self._declared) != (aliases, declared):
            self.aliases, self._declared = dict(aliases), dict(declared)
            self.changed()

    def replace_model_pools(self, pools: Mapping[str, Iterable[ModelPool]]) -> None:
        """The lanes of all quota groups, at once."""
        new = {group: list(found) for group, found in pools.items()}
        if new != self._model_pools:
            self._model_pools = new
            self.changed()

    def set_budgets(self, budgets: Iterable[BudgetRule]) -> None:
        """Replace all budgets."""
        rules = {budget.scope.id: budget for budget in budgets}
        if rules == self._budget_rules:
            return
        self._budget_rules, self._budgets = rules, {}
        for budget in self._budget_rules.values():
            self._budgets.setdefault((budget.kind, budget.target), []).append(budget.scope)
        self.changed()

    def budgets(self) -> list[ScopeConfig]:
        """Every budget."""
        return [rule.scope for rule in self._budget_rules.values()]

    def budget(self, scope_id: str) -> ScopeConfig | None:
        """The budget with that id, None if it is none of ours."""
        rule = self._budget_rules.get(scope_id)
        return None if rule is None else rule.scope

    def budget_rules(self) -> dict[str, BudgetRule]:
        """Every budget with whom it is for, by id."""
        return dict(self._budget_rules)

    # --- reading -------------------------------------------------------------------------------------------------

    def models(self) -> list[tuple[str, tuple[str, ...]]]:
        """Model ids that can be asked for, with the providers that serve them; aliases included."""
        found: dict[str, set[str]] = {}
        for key in self.keys.values():
            for model in key.models or ():
                found.setdefault(model, set()).add(key.provider_id)
        for provider_id in {key.provider_id for key in self.keys.values() if key.models is None}:
            for model in self._names(provider_id):
                found.setdefault(model, set()).add(provider_id)
        for alias, targets in self.aliases.items():
            found.setdefault(alias, set()).update(provider for provider, _ in targets)
        return [(model, tuple(sorted(providers))) for model, providers in sorted(found.items())]

    def _names(self, provider_id: str) -> Iterable[str]:
        """A provider's catalogue; where that is a pattern or open, what it serves of the models with a price."""
        provider = self.providers.get(provider_id)
        if provider is None:
            return ()
        if provider.models:
            return provider.models
        priced = self.prices.models(provider_id)
        return priced if provider.models is None else [model for model in priced if model in provider.models]

    def shared_scopes(
        self, team: str | None, client: str | None, constraints: Constraints | None = None
    ) -> SharedScopes:
        """Budgets that apply whichever key is chosen: global, the team's, the client's, those of the policies.

        Raises:
            InvalidRequestError: they are more than one request can be held in.
        """
        known = self._shared.get((team, client, constraints))
        if known is None:
            found = [*self._budgets.get(("global", ""), ())]
            found += self._budgets.get(("team", team), ()) if team is not None else ()
            found += self._budgets.get(("client", client), ()) if client is not None else ()
            for policy_id in constraints.budgets if constraints is not None else ():
                found += self._budgets.get(("policy", policy_id), ())
            if len(found) > SHARED_SCOPES_MAX:
                raise InvalidRequestError(
                    f"the request would be in {len(found)} budgets; at most {SHARED_SCOPES_MAX} are possible"
                )
            known = SharedScopes(tuple(scope.id for scope in found), any(scope.hard for scope in found))
            if len(self._shared) >= POOLS_MAX:
                self._shared.clear()
            self._shared[team, client, constraints] = known
        return known

    def pool(
        self,
        model: str,
        provider_id: str | None,
        dialect: str,
        team: str | None = None,
        constraints: Constraints | None = None,
        *,
        operation: str = "",
        group: str = "",
        cell: int | None = None,
    ) -> Pool:
        """Every way to serve a model. `dialect` "" : any adapter will do; else only wires that speak it, and have the
        `operation` ("": whichever). `group`: the only quota group that may ("": any).

        `cell`: the number of the only cell whose keys may. `team`: whose request it is. Its own keys come first, then
        those that are nobody's; another team's never.
        `constraints`: the policies that apply; what they refuse is left out, and may be everything.

        Raises:
            InvalidRequestError: the pinned provider is not registered, or no model can have that name.
            ModelNotFoundError: no key serves the model.
            UnsupportedEndpointError: keys do, at providers that speak another dialect or lack the operation.
        """
        if team is not None:
            team = self._known_team(team)
        place = model, provider_id, dialect, operation, group, team, cell
        pool = self._pools.get(place)
        if pool is None:
            refuse_bad_model(model, "model")
            if provider_id is not None and provider_id not in self.providers:
                raise InvalidRequestError(
                    f"provider {provider_id!r} is not registered; {REGISTER_FIRST}", field="provider_id"
                )
            options = self._of(cell, self._options(model, provider_id, dialect, operation, group, team))
            if not options:
                if dialect and self._of(cell, self._options(model, provider_id, "", "", group, team)):
                    raise UnsupportedEndpointError(model, operation, dialect)
                raise not_found(model, provider_id, [name for name, _ in self.models()], self.unread)
            self._make_room(len(options))
            if len(self._turns) >= POOLS_MAX:
                self._turns.clear()
            pool = self._pools[place] = Pool(model, options, self._turns.setdefault(place, Turns()))
            self.version += 1  # lanes may be in use now that were not before
        return pool if constraints is None else self._narrow(pool, constraints)

    def pool_of(self, call: Call, constraints: Constraints | None = None) -> Pool:
        """Every way to serve a call. A client's body is understood by those who speak its dialect, an intent by all.

        Errors: as `pool`.
        """
        cell = self.cell_of(call)
        if call.intent is not None:
            return self.pool(call.model, call.provider_id, "", call.team, constraints, cell=cell)
        return self.pool(
            call.model, call.provider_id, call.dialect, call.team, constraints, operation=call.operation,
            group=call.group, cell=cell,
        )  # fmt: skip

    def cell_of(self, call: Call) -> int | None:
        """The only cell that may serve a call; None: any. Raises InvalidRequestError: two would have to."""
        return None if self.layout is None else self.layout.of_call(call.team, call.client)

    def room_of(self, call: Call) -> tuple[str, str | None, str, str | None, int | None]:
        """What calls for the same options have in common."""
        team = None if call.team is None else self._known_team(call.team)
        return call.model, call.provider_id, "" if call.intent is not None else call.dialect, team, self.cell_of(call)

    def _narrow(self, pool: Pool, constraints: Constraints) -> Pool:
        """The pool under constraints, made once."""
        known = self._narrowed.get((pool, constraints))
        if known is None:
            known = narrowed(
                pool, constraints, budgets_of=lambda policy_id: self._budgets.get(("policy", policy_id), ()),
                rate_of=self._rate,
            )  # fmt: skip
            self._make_room(len(known.options))
            self._narrowed[pool, constraints] = known
        return known

    def _make_room(self, options: int) -> None:
        """Forget all pools when they have become too many, or too large together."""
        self._options_kept += options
        if len(self._pools) + len(self._narrowed) >= POOLS_MAX or self._options_kept > OPTIONS_MAX:
            self._pools.clear()
            self._narrowed.clear()
            self._options_kept = options

    def _known_team(self, team: str) -> str | None:
        """The team if it has keys, "" if only others have, None if none has: so many pools there are, and no more."""
        if self._teams is None:
            self._teams = frozenset(key.team for key in self.keys.values() if key.team)
        return team if team in self._teams else "" if self._teams else None

    def _of(self, cell: int | None, options: Iterable[Option]) -> list[Option]:
        of_group = None if self.layout is None else self.layout.of_group
        return [one for one in options if cell is None or of_group is None or of_group(one.key.quota_group) == cell]

    def _options(
        self, model: str, provider_id: str | None, dialect: str, operation: str, group: str, team: str | None
    ) -> Iterable[Option]:
        targets = self._targets(model, provider_id)
        told, fitting = False, []
        for key in self.keys.values():
            provider = self.providers.get(key.provider_id)
            if provider is None or (provider_id is not None and key.provider_id != provider_id):
                continue
            fits = (not dialect or provider.speaks(dialect, operation)) and (not key.team or team in (None, key.team))
            for rank, upstream in self._upstream_models(model, targets, key):
                how = self._serves(provider, key, upstream, pinned=provider_id is not None or targets is not None)
                told |= how == TOLD
                if how and fits and (not group or key.quota_group == group):
                    fitting.append((how, key, provider, upstream, 2 * rank + (bool(team) and key.team != team)))
        for how, key, provider, upstream, rank in fitting:
            if how == TOLD or not told:  # what one was told to serve, nobody gets for guessing that it might
                yield self._option(key, provider, upstream, rank)

    def _targets(self, model: str, provider_id: str | None) -> tuple[tuple[str, str], ...] | None:
        """What a name stands for; None: itself. Who pins a provider of a model's equivalents means that very model."""
        targets = self.aliases.get(model)
        if targets is None or provider_id is None or all(upstream != model for _, upstream in targets):
            return targets
        return tuple(target for target in targets if target == (provider_id, model))

    def capabilities(self, provider_id: str, model: str) -> ModelCapabilities:
        """What a model can do: as declared, else as the price list and the provider's adapter know it."""
        known, provider = self._declared.get((provider_id, model), ModelCapabilities()), self.providers.get(provider_id)
        if known.context_tokens is None:
            known = replace(known, context_tokens=self.prices.context_tokens(provider_id, model))
        if known.tools is None and provider is not None:
            known = replace(known, tools=provider.tools)
        return known

    def _able(self, provider_id: str, model: str) -> ModelCapabilities:
        """The same, looked up once."""
        known = self._abilities.get((provider_id, model))
        if known is None:
            known = self._abilities[provider_id, model] = self.capabilities(provider_id, model)
        return known

    def options_of(self, key_id: str, model: str | None = None) -> list[Option]:
        """The ways in which one key serves a model, or, without one, the models that it is known to serve.

        Raises:
            InvalidRequestError: no such key, or it does not serve the model.
        """
        key = self.keys.get(key_id)
        provider = None if key is None else self.providers.get(key.provider_id)
        if key is None or provider is None:
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
        if model is None:
            names = key.models if key.models is not None else list(self._names(provider.id))[:MODELS_OF_KEY_MAX]
            return [self._option(key, provider, name, 0) for name in names] or [self._option(key, provider, "", 0)]
        found = [
            self._option(key, provider, upstream, rank)
            for rank, upstream in self._upstream_models(model, self._targets(model, None), key)
            if self._serves(provider, key, upstream, pinned=True)
        ]
        if not found:
            raise InvalidRequestError(f"key {key_id!r} does not serve model {model!r}", field="model")
        return found

    def _upstream_models(
        self, model: str, targets: tuple[tuple[str, str], ...] | None, key: Key
    ) -> Iterable[tuple[int, str]]:
        if targets is None:
            return [(0, model)]
        return [(rank, upstream) for rank, (provider, upstream) in enumerate(targets) if provider == key.provider_id]

    def _serves(self, provider: Provider, key: Key, model: str, *, pinned: bool) -> int:
        """Whether a key serves a model: 0 (no), GUESSED or TOLD. A catalogue that is a pattern guesses."""
        if key.models is not None:
            return TOLD if model in key.models else 0
        if provider.models is not None and model not in provider.models:
            return 0
        if pinned or provider.models or self.prices.knows(provider.id, model):
            return TOLD
        if provider.models is not None:
            return GUESSED
        known = provider.wire is None or self.prices.price(provider.id, model) is not None
        return TOLD if known else GUESSED if self._only(provider) else 0

    def _only(self, provider: Provider) -> bool:
        """A single provider with keys is the pinned one, whatever the model is called."""
        return all(key.provider_id == provider.id for key in self.keys.values())

    def _option(self, key: Key, provider: Provider, model: str, rank: int) -> Option:
        scopes = [*self._budgets.get(("provider", provider.id), ()), *self._budgets.get(("key", key.id), ())]
        price = self.prices.price(key_price_name(key.id), "*") if key.cost_per_1k is not None else None
        option = Option(
            key=key, provider=provider, model=model, rank=rank, id=f"{key.id}/{model}",
            lanes=(key_lane(key.id), *self.group_lanes(key.quota_group, model), provider_lane(provider.id)),
            scopes=tuple(scope.id for scope in scopes), hard=any(scope.hard for scope in scopes),
            price=price or self.prices.price(provider.id, model), quality=self._quality(key, provider, model),
            able=self._able(provider.id, model),
            seen=self.observations.of(key.id, model),
        )  # fmt: skip
        option.rate = self._rate(option)
        return option

    def _rate(self, option: Option) -> int:
        """A number that is equal for options on which a request costs the same."""
        rate = option.provider.id, option.model, id(option.price), option.hard, option.cost_max_nanousd
        return self._rates.setdefault(rate, len(self._rates))

    def _quality(self, key: Key, provider: Provider, model: str) -> float:
        """The quality that is declared: by the key, else by the configuration, else by the provider's catalogue."""
        own = key.quality
        if isinstance(own, Mapping):
            own = own.get(model, own.get("*"))
        for declared in (own, self.qualities.get(model), provider.quality.get(model)):
            if declared is not None:
                return declared
        return QUALITY_DEFAULT

    def group_lanes(self, group: str, model: str) -> tuple[str, ...]:
        """The lanes a quota group meters a model in. A group without configured limits learns one per model."""
        pools = self._model_pools.get(group, ())
        named = tuple(pool.lane for pool in pools if pool.models is not None and model in pool.models)
        general = tuple(pool.lane for pool in pools if pool.models is None)
        return (*named, *general) or (group_lane(group, model),)

    def lanes_of(self, key: Key) -> list[str]:
        """The lanes that meter a key, its own first, its provider's left out: those that are configured or in use."""
        found = dict.fromkeys([key_lane(key.id), *(pool.lane for pool in self._model_pools.get(key.quota_group, ()))])
        for pool in self._pools.values():
            for option in pool.options:
                if option.key is key:
                    found.update(dict.fromkeys(option.lanes[1:-1]))
        return list(found)

    def metering_lanes(self) -> dict[str, tuple[str, ...]]:
        """The lanes that meter each key, as `lanes_of` has them, of all keys at once."""
        shared = {group: [pool.lane for pool in pools] for group, pools in self._model_pools.items()}
        found = {
            key.id: dict.fromkeys([key_lane(key.id), *shared.get(key.quota_group, ())]) for key in self.keys.values()
        }
        for pool in self._pools.values():
            for option in pool.options:
                if option.key.id in found:
                    found[option.key.id].update(dict.fromkeys(option.lanes[1:-1]))
        return {key_id: tuple(lanes) for key_id, lanes in found.items()}

    def levels(self, capacity: Mapping[str, Level]) -> dict[str, Level]:
        """How the keys are off that are metered in these lanes: each as its worst lane."""
        found = {key_id: capacity[lane] for key_id in self.keys if (lane := key_lane(key_id)) in capacity}
        if capacity:
            for pool in self._pools.values():
                for option in pool.options:
                    level = worst(capacity, option.lanes[1:-1])
                    if level > found.get(option.key.id, Level.ABUNDANT):
                        found[option.key.id] = level
        return found

    def general_lanes(self, group: str) -> tuple[str, ...]:
        """The lanes in which a quota group meters every model."""
        return tuple(pool.lane for pool in self._model_pools.get(group, ()) if pool.models is None)

    def option_of(self, key: Key, model: str | None) -> Option | None:
        """The way to serve a model with a key, if it does; without a model, one that was asked for before.

        Raises:
            ModelNotFoundError: no key serves the model.
        """
        pools = self._pools.values() if model is None else [self.pool(model, key.provider_id, "")]
        return next((option for pool in pools for option in pool.options if option.key is key), None)

    def lane_ids(self) -> list[str]:
        """Every lane that is configured or in use: keys', providers', quota groups'."""
        found = {*map(key_lane, self.keys), *map(provider_lane, self.providers)}
        found.update(pool.lane for pools in self._model_pools.values() for pool in pools)
        for pool in self._pools.values():
            for option in pool.options:
                found.update(option.lanes[1:-1])
        return sorted(found)
