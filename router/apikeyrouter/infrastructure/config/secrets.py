"""Secrets in the configuration file: `env:NAME`, `file:PATH`, or the literal."""

from collections.abc import Mapping
from pathlib import Path

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["SecretReader"]

FILE_BYTES_MAX = 65_536


class SecretReader:
    """Resolves secrets and remembers which files they came from, so that a change of one can be noticed."""

    def __init__(self, environ: Mapping[str, str], base: Path) -> None:
        self._environ = environ
        self._base = base
        self.files: set[Path] = set()

    def read(self, text: str) -> str:
        """The secret without blanks around it. Errors: InvalidRequestError naming the variable or file, not the value.

        A relative path is relative to the configuration file's folder.
        """
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "env":
            return self._from_environment(rest.strip())
        if colon and scheme == "file":
            return self._from_file(self._base / Path(rest.strip()).expanduser())
        return text

    def _from_environment(self, name: str) -> str:
        value = self._environ.get(name, "").strip()
        if not value:
            raise InvalidRequestError(f"environment variable {name or '(no name)'} is not set")
        return value

    def _from_file(self, path: Path) -> str:
        self.files.add(path)
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            value = content.decode().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequestError(f"file {path} cannot be read ({type(exc).__name__})") from exc
        if not value or len(content) > FILE_BYTES_MAX:
            raise InvalidRequestError(f"file {path} is {'too large' if value else 'empty'}")
        return value
