"""`router.configuration_manager`: where settings come from, what they are, whether others would be sound; reloading.

Sources, the first wins: what the program passed in, the environment, defaults; and a configuration file, where one is
named. Everything is read and checked before anything is taken over.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.models.policy import ValidationResult
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import ConfigFile, load_config, read_config
from apikeyrouter.infrastructure.config.environment import PREFIX
from apikeyrouter.infrastructure.config.settings import RouterSettings

__all__ = ["ConfigurationManager"]

T = TypeVar("T")
Defer = Callable[[Callable[[], Coroutine[Any, Any, T]]], Awaitable[T]]


@checking("get_setting", "reload_configuration")
class ConfigurationManager:
    """Reads, checks and reloads what a router is configured by.

    Args:
        given: what the program passed in; a whole RouterSettings stands as it is.
        current: the settings in force.
        take: put settings into force.
        apply: put a compiled file into force, after what was told before it.
        defer: start work in the order of the calls, awaited or not.
    """

    def __init__(
        self,
        given: RouterSettings | Mapping[str, Any] | None,
        *,
        current: Callable[[], RouterSettings],
        take: Callable[[RouterSettings], None],
        apply: Callable[[CompiledConfig], Awaitable[None]],
        defer: Defer[RouterSettings],
    ) -> None:
        self._given = given
        self._current, self._take, self._apply, self._defer = current, take, apply, defer
        self._path: Path | None = None
        self._file: CompiledConfig | None = None

    def load_configuration(self) -> RouterSettings:
        """The settings as their sources say now; nothing is put into force.

        Raises:
            ConfigurationError: naming the variable.
        """
        return RouterSettings.read(self._given)

    def get_setting(self, key: str, default: Any = None) -> Any:
        """A setting in force, by its name (`max_decisions`) or its variable (`APIKEYROUTER_MAX_DECISIONS`).

        Of the file that was reloaded last, `routing.objective` and the like. `default` for what there is not.
        """
        name = key.removeprefix(PREFIX).lower() if key.startswith(PREFIX) else key
        if name in RouterSettings.model_fields:
            return getattr(self._current(), name)
        section, _, rest = name.partition(".")
        if section == "routing" and self._file is not None:
            return getattr(self._file.routing, rest, default)
        return default

    def validate_configuration(self, config: Mapping[str, Any] | str | Path) -> ValidationResult:
        """Whether a configuration is sound: settings, the sections of a configuration file, or the path of one.

        Never raises; each error names the setting, or its path in the file.
        """
        try:
            if isinstance(config, str | Path):
                return ValidationResult(valid=True, warnings=list(self._compiled(Path(config)).warnings))
            if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
                raise ConfigurationError(f"must be a mapping of names or a path, not {type(config).__name__}")
            if config.keys() & ConfigFile.model_fields.keys():
                return ValidationResult(valid=True, warnings=list(compile_config(read_config(config)).warnings))
            RouterSettings(**config)
            return ValidationResult(valid=True)
        except ConfigurationError as exc:
            return ValidationResult(valid=False, errors=list(exc.errors))

    def reload_configuration(self, path: str | Path | None = None) -> Awaitable[RouterSettings]:
        """Put into force what the sources say now; the settings. `path` names a configuration file, once for all.

        Starts at once, in the order of other calls, and need not be awaited. All or nothing: what is wrong is found
        before any change. A limit on records kept takes effect with the next one; key material that was sealed before
        must be readable under the new master keys.

        Raises:
            ConfigurationError: with every complaint; nothing was changed.
        """
        return self._defer(lambda: self._reload(None if path is None else Path(path)))

    def get_defaults(self) -> RouterSettings:
        """What holds where nothing is said, whatever the environment says."""
        return RouterSettings.from_environment({})

    async def _reload(self, path: Path | None) -> RouterSettings:
        path = path or self._path
        settings = self.load_configuration()
        file = None if path is None else self._compiled(path)
        self._take(settings)
        if file is not None:
            await self._apply(file)
            self._path, self._file = path, file
        return settings

    def _compiled(self, path: Path) -> CompiledConfig:
        return compile_config(load_config(path), base=path.parent)
