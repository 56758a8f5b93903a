"""pymongo's async clients from a URL, and its errors as ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    StateStoreError,
    StateStoreUnavailableError,
)

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient

__all__ = [
    "check_keeps_every_change",
    "check_mongodb_url",
    "mapped_mongo_errors",
    "open_mongo_client",
    "redacted_mongodb_url",
]

SCHEMES = ("mongodb", "mongodb+srv")
CONNECT_MS_MAX = 2_000
ANSWER_MS_MAX = 5_000
AUTHENTICATION_FAILED = {13, 18}
"""Codes of the server: Unauthorized, AuthenticationFailed."""


def check_mongodb_url(url: str) -> str:
    """The URL itself. Errors: ConfigurationError, never showing a password."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest:
        raise ConfigurationError("a MongoDB URL starts with mongodb:// or mongodb+srv://")
    return url


def redacted_mongodb_url(url: str) -> str:
    """The URL for messages: scheme and hosts alone."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{urlsplit('//' + rest).netloc.rpartition('@')[2]}"


def open_mongo_client(url: str) -> "AsyncMongoClient[dict[str, Any]]":
    """A client of the running event loop; it connects on first use. Writes wait for a majority.

    Errors: ConfigurationError for a URL that pymongo refuses, or without pymongo (extra `mongodb`).
    """
    try:
        from pymongo import AsyncMongoClient
        from pymongo.errors import ConfigurationError as WrongUrlError
        from pymongo.errors import InvalidURI
    except ImportError as exc:
        raise ConfigurationError("MongoDB needs the extra: pip install 'apikeyrouter[mongodb]'") from exc
    try:
        return AsyncMongoClient(
            url,
            w="majority",
            serverSelectionTimeoutMS=CONNECT_MS_MAX,
            connectTimeoutMS=CONNECT_MS_MAX,
            socketTimeoutMS=ANSWER_MS_MAX,
            appname="apikeyrouter",
        )
    except (InvalidURI, WrongUrlError, ValueError) as exc:
        raise ConfigurationError(f"the MongoDB URL {redacted_mongodb_url(url)} is not valid: {exc}") from exc


def check_keeps_every_change(build_info: Mapping[str, Any]) -> None:
    """Refuse a server that reads a document and writes it in two steps, so that of changes made at once some are lost.

    FerretDB 1 does: of 400 increments by four clients of 1.24.0, 138 were counted (tried in November 2026).
    `build_info`: the server's answer to `buildInfo`. Errors: StateStoreError.
    """
    version = str(build_info.get("ferretdbVersion", ""))
    if version.startswith("v1."):
        raise StateStoreError(
            f"FerretDB {version} loses changes that are made at once, e.g. by two workers; use MongoDB or FerretDB 2"
        )


@contextmanager
def mapped_mongo_errors(url: str) -> Iterator[None]:
    """Turn pymongo's errors into ours: StateStoreUnavailableError or StateStoreError, saying what to do."""
    from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

    where = f"MongoDB at {redacted_mongodb_url(url)}"
    try:
        yield
    except ConnectionFailure as exc:
        raise StateStoreUnavailableError(
            f"{where} does not answer ({type(exc).__name__}); check that it runs and is reachable"
        ) from exc
    except OperationFailure as exc:
        if exc.code in AUTHENTICATION_FAILED:
            raise StateStoreError(f"{where} refuses the credentials in the MongoDB URL") from exc
        raise StateStoreError(f"{where} refused a command: {exc.details or exc}") from exc
    except PyMongoError as exc:
        raise StateStoreError(f"{where}: {exc}") from exc
