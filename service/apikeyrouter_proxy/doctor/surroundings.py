"""What commands find around them: the environment and `.env`, provider keys, the configuration file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import load_config
from apikeyrouter.infrastructure.config.environment import ProviderKey, environment, provider_keys
from apikeyrouter.infrastructure.config.settings import RouterSettings, ServiceSettings

__all__ = ["Surroundings", "look_around"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """`config` is the compiled file, None without one; `keys` are those of the environment."""

    environ: Mapping[str, str]
    settings: ServiceSettings
    router: RouterSettings
    keys: tuple[ProviderKey, ...]
    config: CompiledConfig | None
    config_path: str | None

    @property
    def provider_ids(self) -> list[str]:
        """Providers that have at least one key, in order."""
        configured = [key.provider_id for key in self.config.keys] if self.config else []
        return list(dict.fromkeys([*configured, *(key.provider_id for key in self.keys)]))


def look_around(*, config: Path | None = None) -> Surroundings:
    """Read everything before anything starts. Errors: ConfigurationError that names the variable or the path."""
    environ = environment()
    settings = ServiceSettings.load(environ=environ)
    path = str(config) if config else settings.config
    compiled = None
    if path:
        compiled = compile_config(load_config(path), environ=environ, base=Path(path).parent)
    return Surroundings(
        environ=environ,
        settings=settings,
        router=RouterSettings.from_environment(environ),
        keys=tuple(provider_keys(environ)),
        config=compiled,
        config_path=os.path.abspath(path) if path else None,
    )
