"""The configuration file as it is written: YAML, strict, every complaint with its path."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError, field_validator, model_validator

from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.limits import Count, Dollars, Fraction, LimitRow, Timezone
from apikeyrouter.domain.components.wait_lines import LENGTH_MAX
from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.capabilities import ModelCapabilities
from apikeyrouter.domain.models.client import Priority
from apikeyrouter.domain.models.edge import complaints, invalid
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.config.cell_entries import AccountingEntry
from apikeyrouter.infrastructure.config.compiled import RoutingRecord, Target
from apikeyrouter.infrastructure.config.failure_entries import (
    BreakerEntry,
    BreakersEntry,
    CorrelatedEntry,
    PhasesEntry,
    RetryBudgetEntry,
    TimeoutsEntry,
)
from apikeyrouter.infrastructure.config.fields import (
    BaseUrl,
    ConnectionsMax,
    Entry,
    ModelName,
    Name,
    PathName,
    Price,
    Quality,
    Secret,
    Suspense,
    SuspenseText,
    Weight,
)
from apikeyrouter.strict_yaml import StrictYamlError, read_yaml

__all__ = [
    "BudgetEntry",
    "ClientEntry",
    "ConfigFile",
    "KeyEntry",
    "LimitEntry",
    "ModelTarget",
    "PriceEntry",
    "ProviderEntry",
    "RoutingEntry",
    "load_config",
    "parse_config",
    "read_config",
    "read_models",
]

FILE_BYTES_MAX = 8 * 2**20
ENTRIES_MAX = 100_000
"""Most keys, limits or clients in one file."""
WAIT_MS_MAX = 600_000


class ProviderEntry(Entry):
    """A provider: which adapter talks to it, and where. `options` are the adapter's own.

    `timeouts`, `breaker`: where this provider's differ from those of `routing`. `connections_max`: most connections of
    one process to it; absent: as many as there are calls.
    """

    adapter: Name
    base_url: BaseUrl | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    timeouts: PhasesEntry = PhasesEntry()
    breaker: BreakerEntry = BreakerEntry()
    connections_max: ConnectionsMax | None = None


class ModelTarget(Entry):
    """One way to serve an alias. What it can do may be told; what is not told counts as able.

    `context_tokens`: the longest input it takes (absent: as the price list knows it).
    """

    provider: Name
    model: ModelName
    context_tokens: int | None = Field(default=None, ge=1, le=AMOUNT_MAX, strict=True)
    vision: bool | None = Field(default=None, strict=True)
    tools: bool | None = Field(default=None, strict=True)
    structured_output: bool | None = Field(default=None, strict=True)

    def compiled(self) -> Target:
        """The record of it."""
        told = self.model_dump(exclude={"provider", "model"}, exclude_none=True)
        capabilities = ModelCapabilities(**told) if told else None
        return Target(provider_id=self.provider, model=self.model, capabilities=capabilities)


class KeyEntry(Entry):
    """A key. Without an `id` it gets the one that its material determines. `models` absent: all.

    `quota_group`, `models` and `weight` (default 1) may stand in the metadata too; here they win.
    """

    id: PathName | None = None
    provider: Name
    key: Secret
    quota_group: Name | None = None
    models: list[ModelName] | None = None
    weight: Weight | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


SET_ASIDE_DEFAULT = 0.1
_SHORT = ("hourly", "daily")


class LimitEntry(LimitRow):
    """What the provider meters for a quota group (and pool of models), or our own cap on one key.

    `on_store_loss`: what happens while the store is away; `bounded`: `set_aside` of the limits (0 … 0.5, default 0.1)
    is divided among the workers for that, and not admitted otherwise.
    """

    quota_group: Name | None = None
    key: Name | None = None
    models: list[ModelName] | None = Field(default=None, min_length=1)
    on_store_loss: Literal["closed", "bounded"] = "closed"
    set_aside: Fraction | None = None

    @property
    def part_set_aside(self) -> float:
        """What part of the limits is for when the store is away."""
        if self.on_store_loss == "closed":
            return 0.0
        return SET_ASIDE_DEFAULT if self.set_aside is None else self.set_aside

    @model_validator(mode="after")
    def _names_one_thing(self) -> "LimitEntry":
        if (self.quota_group is None) == (self.key is None):
            raise InvalidRequestError("needs a quota_group or a key, and not both")
        if self.set_aside is not None and (self.on_store_loss == "closed" or not self.set_aside):
            raise InvalidRequestError("goes with on_store_loss: bounded, and is above 0", field="set_aside")
        if self.on_store_loss == "bounded" and self.spend_usd is not None and self.spend_period not in _SHORT:
            raise InvalidRequestError("goes with a spend_period of a day at most", field="on_store_loss")
        if self.key is not None and self.models is not None:
            raise InvalidRequestError(
                "goes with a quota_group; limits of one key are for all its models", field="models"
            )
        return self


class RateEntry(Entry):
    """Rates in dollars per million tokens (`request`: per request). What is left out costs like its class."""

    input: Price | None = None
    output: Price | None = None
    cached_input: Price | None = None
    cache_write: Price | None = None
    cache_write_long: Price | None = None
    reasoning: Price | None = None
    input_audio: Price | None = None
    input_image: Price | None = None
    input_video: Price | None = None
    cached_audio: Price | None = None
    cached_image: Price | None = None
    output_audio: Price | None = None
    output_image: Price | None = None
    output_video: Price | None = None
    request: Price | None = None

    @property
    def rates(self) -> dict[str, Decimal]:
        """The rates that are named."""
        return {name: rate for name in RateEntry.model_fields if (rate := getattr(self, name)) is not None}


class PriceTier(RateEntry):
    """The rates of a whole request whose input is longer than `above` tokens."""

    above: Count


class PriceEntry(RateEntry):
    """A price. Without `provider`: at every provider. `service_tiers`: by the tier that served (batch, flex, …)."""

    model: ModelName
    provider: Name | None = None
    input: Price
    output: Price
    tiers: list[PriceTier] = Field(default_factory=list, max_length=8)
    service_tiers: dict[Name, RateEntry] = Field(default_factory=dict, max_length=8)


class BudgetEntry(Entry):
    """A budget. `unpriced` is what happens to what has no price: default deny under hard, meter under soft.

    `on_store_loss`: as of limits; under `hard` workers hold `set_aside` of the budget (0 … 0.5, default 0.1) for it.
    """

    name: Name
    scope: BudgetScope
    scope_id: Name | None = None
    limit_usd: Dollars
    period: Literal["hourly", "daily", "weekly", "monthly", "total"]
    enforcement: Literal["hard", "soft"] = "hard"
    timezone: Timezone = "UTC"
    unpriced: Literal["deny", "flat", "meter"] | None = None
    flat_usd: Dollars | None = None
    suspense: SuspenseText = Suspense()
    on_store_loss: Literal["closed", "bounded"] = "closed"
    set_aside: Fraction | None = None

    @property
    def part_set_aside(self) -> float:
        """What part of the budget workers hold for when the store is away."""
        if self.on_store_loss == "closed" or self.enforcement == "soft":
            return 0.0
        return SET_ASIDE_DEFAULT if self.set_aside is None else self.set_aside

    @field_validator("scope", mode="before")
    @classmethod
    def _known_scope(cls, value: object) -> object:
        found = BudgetScope.lookup(value) if isinstance(value, str) else None
        if found is None:
            raise InvalidRequestError(f"must be one of {', '.join(BudgetScope)}")
        return found

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "BudgetEntry":
        if self.scope is BudgetScope.Global and self.scope_id is not None:
            raise InvalidRequestError("does not go with scope global", field="scope_id")
        if self.scope is not BudgetScope.Global and self.scope_id is None:
            raise InvalidRequestError(f"is required for scope {self.scope.value}", field="scope_id")
        if (self.unpriced == "flat") != (self.flat_usd is not None):
            raise InvalidRequestError("goes with unpriced: flat", field="flat_usd")
        if self.set_aside is not None and not (self.part_set_aside and self.set_aside):
            raise InvalidRequestError(
                "goes with enforcement: hard and on_store_loss: bounded, and is above 0", field="set_aside"
            )
        return self


class ClientEntry(Entry):
    """Who may call. `models` may name aliases; absent: all. Rates are our own limits on this client.

    `providers`: the only ones that may serve it; `expires_at`: its requests are refused from then on.
    """

    name: PathName
    token: Secret
    team: Name | None = None
    models: list[ModelName] | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None
    weight: Weight = 1.0
    providers: list[Name] | None = Field(default=None, min_length=1)
    priority: Priority = "interactive"
    expires_at: AwareDatetime | None = None


class _Models(Entry):
    models: dict[ModelName, list[ModelTarget]]


class RoutingEntry(Entry):
    """How requests are routed unless they say otherwise. Times in milliseconds.

    `wait_max_ms`: how long a request waits for room before it is denied; `wait_asked_max_ms`: how long at most where it
    asks for that itself; `wait_queue_max`: how many may wait in one process.
    `objective`: a name, or a mapping of `primary`, `secondary`, `weights` and `constraints`. `quality`: by model, 0…1.
    """

    objective: RoutingObjective = Field(default_factory=RoutingObjective)
    quality: dict[ModelName, Quality] = Field(default_factory=dict)
    attempts_max: int = Field(default=3, ge=1, le=10, strict=True)
    wait_max_ms: int = Field(default=0, ge=0, le=WAIT_MS_MAX, strict=True)
    wait_asked_max_ms: int = Field(default=60_000, ge=0, le=WAIT_MS_MAX, strict=True)
    wait_queue_max: int = Field(default=LENGTH_MAX, ge=1, le=100_000, strict=True)
    translate: bool = Field(default=False, strict=True)
    lease_ms: int = Field(default=30_000, ge=1_000, le=3_600_000, strict=True)
    timeouts: TimeoutsEntry | None = None
    retry_budget: RetryBudgetEntry = RetryBudgetEntry()
    correlated_failures: CorrelatedEntry = CorrelatedEntry()
    breakers: BreakersEntry = BreakersEntry()

    def compiled(self) -> RoutingRecord:
        """The record of it."""
        return RoutingRecord(
            objective=self.objective, quality=self.quality, attempts_max=self.attempts_max,
            wait_max_ms=self.wait_max_ms, wait_asked_max_ms=self.wait_asked_max_ms,
            wait_queue_max=self.wait_queue_max, translate=self.translate, lease_ms=self.lease_ms,
            timeouts=None if self.timeouts is None else self.timeouts.seconds(),
            retry_share=self.retry_budget.share, retry_floor=self.retry_budget.floor,
            guard=self.correlated_failures.guard(), key_breaker=self.breakers.key.over(KEY_BREAKER),
            provider_breaker=self.breakers.provider.over(PROVIDER_BREAKER),
        )  # fmt: skip

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objective(cls, value: object) -> RoutingObjective:
        if not isinstance(value, str):
            return RoutingObjective.parse(value)  # type: ignore[arg-type]  # what is no mapping is refused there
        try:
            return RoutingObjective.read(value)
        except InvalidRequestError as exc:
            raise InvalidRequestError(exc.reason) from None


class ConfigFile(Entry):
    """The whole file. Every section may be left out."""

    providers: dict[PathName, ProviderEntry] = Field(default_factory=dict)
    models: dict[ModelName, list[ModelTarget]] = Field(default_factory=dict)
    keys: list[KeyEntry] = Field(default_factory=list, max_length=ENTRIES_MAX)
    limits: list[LimitEntry] = Field(default_factory=list, max_length=ENTRIES_MAX)
    prices: list[PriceEntry] = Field(default_factory=list, max_length=ENTRIES_MAX)
    budgets: list[BudgetEntry] = Field(default_factory=list, max_length=ENTRIES_MAX)
    clients: list[ClientEntry] = Field(default_factory=list, max_length=ENTRIES_MAX)
    policies: list[Policy] = Field(default_factory=list, max_length=ENTRIES_MAX)
    routing: RoutingEntry = Field(default_factory=RoutingEntry)
    accounting: AccountingEntry | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_are_left_out(cls, data: Any) -> Any:
        return {name: section for name, section in data.items() if section is not None} if _is_mapping(data) else data


def read_models(models: Mapping[str, Any]) -> dict[str, tuple[Target, ...]]:
    """The section `models` as code gives it. Raises InvalidRequestError naming the field."""
    if not isinstance(models, Mapping):
        raise InvalidRequestError("must map names to lists of targets", field="models")
    try:
        section = _Models(models={name: list(targets) for name, targets in models.items()})
    except ValidationError as exc:
        raise invalid(exc) from exc
    except TypeError as exc:
        raise InvalidRequestError("must map names to lists of targets", field="models") from exc
    return {name: tuple(target.compiled() for target in targets) for name, targets in section.models.items()}


def load_config(path: str | Path) -> ConfigFile:
    """Read a file. Errors: ConfigurationError with every complaint, each naming its path in the file."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or type(exc).__name__
        name = str(file) if str(file).isprintable() else ascii(str(file))
        raise ConfigurationError(f"{name}: cannot be read ({why})") from exc
    if len(content) > FILE_BYTES_MAX:
        raise ConfigurationError(f"{file}: is larger than {FILE_BYTES_MAX} bytes")
    return parse_config(content, name=str(file))


def parse_config(text: str | bytes, *, name: str = "configuration") -> ConfigFile:
    """Read the text of a file; `name` is what messages call it. Errors: as `load_config`."""
    try:
        data = read_yaml(text)
    except StrictYamlError as exc:
        raise ConfigurationError(f"{name}: {exc}") from exc
    except ImportError as exc:
        raise ConfigurationError("a configuration file needs PyYAML: pip install 'apikeyrouter[proxy]'") from exc
    if data is None:  # as an editor leaves it for a moment that empties a file before it writes it
        raise ConfigurationError(f"{name}: is empty; {{}} is a file that configures nothing")
    return read_config(data, name=name)


def read_config(data: Any, *, name: str = "configuration") -> ConfigFile:
    """Read what a YAML or JSON parser made of it. Errors: as `load_config`."""
    if not _is_mapping(data):
        raise ConfigurationError(f"{name}: must be a mapping of sections ({', '.join(ConfigFile.model_fields)})")
    try:
        return ConfigFile.model_validate(dict(data))
    except ValidationError as exc:
        lines = [f"{path}: {reason}" for path, reason in complaints(exc)]
        raise ConfigurationError(f"{name} is not valid:", errors=lines) from exc


def _is_mapping(data: object) -> bool:
    return isinstance(data, Mapping) and all(isinstance(key, str) for key in data)
