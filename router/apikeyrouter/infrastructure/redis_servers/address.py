"""Where a Redis or Valkey is, as its URL says it: one server, Sentinels, or a Cluster."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from apikeyrouter.domain.models.system_error import ConfigurationError

__all__ = ["RedisAddress", "TlsOptions", "parse_redis_url", "redacted_url"]

Topology = Literal["single", "sentinel", "cluster"]
_SCHEMES: dict[str, tuple[Topology, bool]] = {
    "redis": ("single", False), "rediss": ("single", True), "unix": ("single", False),
    "redis+sentinel": ("sentinel", False), "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False), "rediss+cluster": ("cluster", True),
}  # fmt: skip
_TLS_OPTIONS = (
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname",
)  # fmt: skip
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password", "sentinel_ssl")
_OPTIONS = ("db", "username", "password", *_TLS_OPTIONS, *_SENTINEL_OPTIONS)
_CERT_REQS = ("required", "optional", "none")
PORT_DEFAULT, SENTINEL_PORT_DEFAULT = 6379, 26379


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """How a server is checked, and how we show who we are. File names; `""` and None: the system's, none."""

    cert_reqs: str = "required"
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """What connections are made with.

        Raises:
            ConfigurationError: a file is missing, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
            context.check_hostname = self.check_hostname and self.cert_reqs != "none"
            context.verify_mode = ssl.VerifyMode[f"CERT_{self.cert_reqs.upper()}"]
            if self.certfile is not None:
                context.load_cert_chain(self.certfile, self.keyfile, self.password)
        except OSError as exc:  # ssl.SSLError is one
            named = ", ".join(name for name in (self.ca_certs, self.certfile, self.keyfile) if name)
            raise ConfigurationError(f"Redis URL: the certificates ({named}) cannot be used: {exc}") from exc
        return context

    def words(self) -> dict[str, Any]:
        """The same for redis-py."""
        words = {
            "ssl": True, "ssl_cert_reqs": self.cert_reqs, "ssl_ca_certs": self.ca_certs,
            "ssl_certfile": self.certfile, "ssl_keyfile": self.keyfile,
            "ssl_check_hostname": self.check_hostname and self.cert_reqs != "none",
        }  # fmt: skip
        return words if self.password is None else {**words, "ssl_password": self.password}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where to ask, and how to be let in. `hosts` are servers, Sentinels or some nodes of a Cluster.

    `path` is a unix socket; `master` the name that Sentinels know the primary by.
    """

    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: TlsOptions | None = None
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    sentinel_tls: TlsOptions | None = None

    def __str__(self) -> str:
        where = self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{where} ({self.topology} {self.master})" if self.master else where


def parse_redis_url(url: str) -> RedisAddress:
    """What a Redis URL says.

    One server: `redis://[user:password@]host[:port][/database]`, `unix:///path[?db=n]`. Sentinels:
    `redis+sentinel://[user:password@]host[:port][,host…]/primary[/database]`, with `?sentinel_password=` where they
    ask for one. A Cluster: `redis+cluster://[user:password@]host[:port][,host…]`. With `rediss` in place of `redis`:
    over TLS, with `?ssl_ca_certs=`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`, `ssl_check_hostname`,
    `ssl_cert_reqs`.

    Raises:
        ConfigurationError: what is wrong with it; never shows a password.
    """
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme not in _SCHEMES or not rest:
        raise ConfigurationError(f"a Redis URL starts with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    topology, is_tls = _SCHEMES[scheme]
    parts, query = urlsplit(url), _query(url)
    words = [unquote(word) for word in parts.path.split("/") if word]
    master = words.pop(0) if topology == "sentinel" and words else ""
    if topology == "sentinel" and not master:
        raise ConfigurationError("redis+sentinel:// needs the master's name: redis+sentinel://host:26379/mymaster/0")
    is_unix, told = scheme == "unix", parts.netloc.rpartition("@")
    user, _, password = told[0].partition(":")
    database = query.get("db") or ("0" if is_unix or not words else words[0])
    if not database.isdigit() or (not is_unix and len(words) > 1):
        raise ConfigurationError(f"the Redis URL {redacted_url(url)}: the database must be a number")
    if topology == "cluster" and database != "0":
        raise ConfigurationError(f"the Redis URL {redacted_url(url)}: a Cluster has no databases")
    if topology == "cluster" and "ssl_password" in query:
        raise ConfigurationError("a Cluster's clients take no ssl_password: give a key without one, and guard its file")
    tls = _tls(url, query) if is_tls else None
    return RedisAddress(
        topology=topology, hosts=() if is_unix else _hosts(url, told[2], topology),
        path=unquote(parts.path) if is_unix else None,
        username=unquote(user) or query.get("username"), password=unquote(password) or query.get("password"),
        database=int(database), tls=tls, master=master,
        sentinel_username=query.get("sentinel_username"), sentinel_password=query.get("sentinel_password"),
        sentinel_tls=tls if _truth(url, query, "sentinel_ssl") else None,
    )  # fmt: skip


def redacted_url(url: str) -> str:
    """The URL for messages: without user and password, without query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _query(url: str) -> dict[str, str]:
    query = dict(parse_qsl(urlsplit(url).query))
    unknown = sorted(set(query).difference(_OPTIONS))
    if unknown:
        raise ConfigurationError(
            f"the Redis URL {redacted_url(url)} has unknown options {', '.join(unknown)}; known: {', '.join(_OPTIONS)}"
        )
    return query


def _tls(url: str, query: Mapping[str, str]) -> TlsOptions:
    reqs = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if reqs not in _CERT_REQS:
        raise ConfigurationError(f"the Redis URL {redacted_url(url)}: ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
    return TlsOptions(
        cert_reqs=reqs, ca_certs=query.get("ssl_ca_certs"), certfile=query.get("ssl_certfile"),
        keyfile=query.get("ssl_keyfile"), password=query.get("ssl_password"),
        check_hostname=_truth(url, query, "ssl_check_hostname"),
    )  # fmt: skip


def _truth(url: str, query: Mapping[str, str], name: str) -> bool:
    told = query.get(name, "true").lower()
    if told not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigurationError(f"the Redis URL {redacted_url(url)}: {name} is true or false")
    return told in ("true", "1", "yes")


def _hosts(url: str, told: str, topology: Topology) -> tuple[tuple[str, int], ...]:
    default = SENTINEL_PORT_DEFAULT if topology == "sentinel" else PORT_DEFAULT
    names = told.split(",")
    if len(names) > 1 and topology == "single":
        raise ConfigurationError(
            f"the Redis URL {redacted_url(url)} names several servers; redis+sentinel:// and redis+cluster:// do"
        )
    return tuple(_host(url, name.strip(), default) for name in names if name.strip() or len(names) == 1)


def _host(url: str, name: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{name}")
        return parts.hostname or "127.0.0.1", parts.port or default
    except ValueError as exc:
        raise ConfigurationError(f"the Redis URL {redacted_url(url)} names a port that is no number") from exc
