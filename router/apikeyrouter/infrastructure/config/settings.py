"""Settings of the library and of the service: constructor, then environment, then default."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator

from apikeyrouter.domain.components.cells import CellLayout
from apikeyrouter.domain.models.edge import EdgeModel, complaints
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.config.cell_entries import read_cells
from apikeyrouter.infrastructure.config.environment import PREFIX, environment, refuse_unknown
from apikeyrouter.infrastructure.security.key_vault import MASTER_KEY_VARIABLE, KeyVault

__all__ = ["RouterSettings", "ServiceSettings"]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
RECORDS_MAX = 1_000_000
COOLDOWN_SECONDS_MAX = 31_536_000
WORKERS_MAX = 512
WAIT_MS_MAX = 600_000

_LIBRARY_ONLY = ("redis_url", "namespace")
"""Variables the library reads beside RouterSettings: where the store is, when none is given."""
_TOLERATED = (
    "config", "data_dir", "workers", "embedded", "url", "openai_base_url", "anthropic_base_url",
    "proxy_body_bytes_max", "proxy_drain_seconds", "proxy_drain_notice_seconds", "proxy_connections_max",
    "proxy_header_bytes_max", "proxy_header_seconds", "proxy_body_seconds", "proxy_write_seconds",
    "proxy_access_log", "proxy_access_log_file", "proxy_access_log_peer", "proxy_trusted_proxies",
    "proxy_management_host", "proxy_management_port", "proxy_private_urls",
)  # fmt: skip
"""Variables of the command line and of worker processes."""


class _Settings(EdgeModel):
    """Fields that may come from the environment. Errors: ConfigurationError naming the field or variable."""

    unprefixed: ClassVar[bool] = False

    def __init__(self, /, **given: Any) -> None:
        self._read(os.environ, given)

    @classmethod
    def _made(cls, environ: Mapping[str, str], given: Mapping[str, Any]) -> Self:
        made = cls.__new__(cls)
        made._read(environ, given)
        return made

    def _read(self, environ: Mapping[str, str], given: Mapping[str, Any]) -> None:
        refuse_unknown(environ, _known_names())
        told = _from(environ, type(self).model_fields, unprefixed=self.unprefixed)
        values = {name: value for name, (_, value) in told.items()} | dict(given)
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as exc:
            sources = {name: variable for name, (variable, _) in told.items() if name not in given}
            raise ConfigurationError(errors=_lines(exc, sources)) from exc

    @field_validator("log_level", mode="before", check_fields=False)
    @classmethod
    def _known_level(cls, value: object) -> object:
        level = value.upper() if isinstance(value, str) else value
        if level not in LOG_LEVELS:
            raise InvalidRequestError(f"must be one of {', '.join(LOG_LEVELS)}")
        return level


class RouterSettings(_Settings):
    """The library's settings. Environment variables have the prefix `APIKEYROUTER_`; the library reads no `.env`.

    `max_decisions`, `max_transitions`: records kept per namespace. `default_cooldown_seconds`: of a throttled key;
    `quota_default_cooldown_seconds`: where the provider named no time. `log_level`: of our own logger only.
    `wait_max_ms`: how long a request waits for room before it is denied, where no configuration file says it.
    `encryption_key`: one or more master keys (`KeyVault.parse`); shown and written to JSON as asterisks, not pickled.
    `outbox_dir`: where settlements are kept that could not be delivered; None: in memory only. `slabs`: off:
    this process holds none, whatever limits say. `cells`: how the accounting is divided (`docs/topologies.md`), a list
    of {name, quota_groups, teams, clients}, in the environment as JSON.
    """

    max_decisions: int = Field(default=1000, ge=1, le=RECORDS_MAX)
    max_transitions: int = Field(default=1000, ge=1, le=RECORDS_MAX)
    default_cooldown_seconds: int = Field(default=60, ge=1, le=COOLDOWN_SECONDS_MAX)
    quota_default_cooldown_seconds: int = Field(default=60, ge=1, le=COOLDOWN_SECONDS_MAX)
    wait_max_ms: int = Field(default=0, ge=0, le=WAIT_MS_MAX)
    log_level: str = "INFO"
    encryption_key: SecretStr | str | None = None
    outbox_dir: str | None = None
    slabs: Literal["auto", "off"] = "auto"
    cells: CellLayout = CellLayout()

    @field_validator("cells", mode="before")
    @classmethod
    def _known_cells(cls, value: object) -> CellLayout:
        return read_cells(value)

    @field_validator("encryption_key", mode="before")
    @classmethod
    def _master_keys(cls, value: object) -> SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is None or text == "":
            return None
        if not isinstance(text, str):
            raise InvalidRequestError("must be text")
        try:
            KeyVault.parse(text, name="")
        except ConfigurationError as exc:
            raise InvalidRequestError(str(exc)) from None
        return SecretStr(text)

    @property
    def master_keys(self) -> str | None:
        """The encryption key in the clear."""
        told = self.encryption_key
        return told.get_secret_value() if isinstance(told, SecretStr) else told

    @field_validator("outbox_dir")
    @classmethod
    def _no_directory(cls, value: str | None) -> str | None:
        return value or None

    @classmethod
    def read(cls, config: "RouterSettings | Mapping[str, Any] | None" = None) -> "RouterSettings":
        """Whatever `ApiKeyRouter(config=…)` takes. Errors: ConfigurationError."""
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigurationError(f"config must be a RouterSettings or a dict, not {type(config).__name__}")
        return cls(**(config or {}))

    def __getstate__(self) -> dict[Any, Any]:
        """What pickling writes. Errors: TypeError where that would be the master keys."""
        if self.encryption_key is not None:
            raise TypeError(
                "RouterSettings with an encryption_key are not pickled: the pickle would hold it in the clear; "
                f"give it to the other process as {MASTER_KEY_VARIABLE}"
            )
        return super().__getstate__()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Settings of another environment than the process's own, e.g. one that a `.env` file was added to."""
        return cls._made(environ, {})


class ServiceSettings(_Settings):
    """The service's settings. Each variable is taken without prefix and with `APIKEYROUTER_`, which wins.

    Only `data_dir`, `workers`, `config`, `namespace` and `embedded` need the prefix.
    """

    unprefixed: ClassVar[bool] = True

    proxy_host: str = "0.0.0.0"  # noqa: S104 (the documented default; who may call is decided per connection)
    proxy_port: int = Field(default=8000, ge=0, le=65535)
    proxy_reload: bool = False
    proxy_open: bool = False
    management_api_key: str | None = Field(default=None, repr=False)
    management_api_enabled: bool = True
    enable_hsts: bool = False
    redis_url: str | None = Field(default=None, repr=False)
    mongodb_url: str | None = Field(default=None, repr=False)
    mongodb_database: str = "apikeyrouter"
    log_level: str = "INFO"
    metrics_enabled: bool = True
    namespace: str = "apikeyrouter"
    config: str | None = None
    data_dir: str | None = None
    workers: int = Field(default=1, ge=1, le=WORKERS_MAX)
    embedded: bool = True

    @classmethod
    def load(
        cls, *, dotenv: str | Path | None = ".env", environ: Mapping[str, str] | None = None, **given: Any
    ) -> Self:
        """Settings from `given`, the environment and a `.env` file, in this order. Errors: ConfigurationError."""
        return cls._made(environment(dotenv) if environ is None else environ, given)


_PREFIX_ONLY = frozenset({"namespace", "config", "data_dir", "workers", "embedded"})
"""Service settings whose bare names are too common to be ours."""


def _known_names() -> set[str]:
    return {*RouterSettings.model_fields, *ServiceSettings.model_fields, *_LIBRARY_ONLY, *_TOLERATED}


def _from(environ: Mapping[str, str], names: Any, *, unprefixed: bool) -> dict[str, tuple[str, str]]:
    """Field → (variable, value) for what is set and not empty; the prefixed variable wins."""
    folded = {variable.upper(): (variable, value) for variable, value in environ.items() if value.strip()}
    told: dict[str, tuple[str, str]] = {}
    for name in names:
        variables = [PREFIX + name.upper()]
        if unprefixed and name not in _PREFIX_ONLY:
            variables.append(name.upper())
        found = next((folded[variable] for variable in variables if variable in folded), None)
        if found is not None:
            told[name] = (found[0], found[1].strip())
    return told


def _lines(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    lines = []
    for path, reason in complaints(error):
        name = path.partition(".")[0]
        lines.append(f"{sources.get(name, path)}: {reason}")
    return lines
