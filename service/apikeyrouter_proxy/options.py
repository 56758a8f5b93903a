"""What only the HTTP service needs to know, beside `ServiceSettings`: sizes, times, and where access lines go."""

from collections.abc import Mapping
from dataclasses import dataclass

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.environment import PREFIX

__all__ = ["ProxyOptions"]

BODY_BYTES_DEFAULT = 32 * 2**20
BODY_BYTES_LIMIT = 2**30
DRAIN_SECONDS_DEFAULT = 60.0
DRAIN_SECONDS_LIMIT = 3600.0
DRAIN_NOTICE_SECONDS_LIMIT = 300.0
SECONDS_LIMIT = 86_400.0
HEADER_BYTES_LIMIT = 2**20
CONNECTIONS_LIMIT = 1_000_000
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """The variables `PROXY_<FIELD>` of the environment, each also with the prefix `APIKEYROUTER_`, which wins.

    `body_bytes_max`: a longer request body is answered with 413. `drain_seconds`: how long a stopping process waits
    for the requests under way; `drain_notice_seconds`: how long it says so, and still takes requests, before that.
    `connections_max` per process; `header_bytes_max`, `header_seconds`, `body_seconds`: what a client may take to send
    a request; `write_seconds`: how long it may take nothing of its answer. `access_log_file` "" is standard output;
    `access_log_peer`: lines show where requests came from; `trusted_proxies`: whose `X-Forwarded-For` is believed then.
    `management_port`: management and metrics are served there alone, on `management_host`; 0: on the one port.
    `private_urls`: webhooks may go to private addresses. `first_byte_hold_seconds`: a stream that has not begun by then
    gets comments so often, and with the first the status 200; 0: never.
    """

    body_bytes_max: int = BODY_BYTES_DEFAULT
    drain_seconds: float = DRAIN_SECONDS_DEFAULT
    drain_notice_seconds: float = 0.0
    connections_max: int = 10_000
    header_bytes_max: int = 64 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 300.0
    write_seconds: float = 120.0
    access_log: bool = True
    access_log_file: str = ""
    access_log_peer: bool = False
    trusted_proxies: str = ""
    management_port: int = 0
    management_host: str = "127.0.0.1"
    private_urls: bool = False
    first_byte_hold_seconds: float = 0.0

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "ProxyOptions":
        """The options of an environment. Errors: ConfigurationError naming the variable."""
        return cls(
            body_bytes_max=int(
                _number(environ, "PROXY_BODY_BYTES_MAX", BODY_BYTES_DEFAULT, least=1, most=BODY_BYTES_LIMIT)
            ),
            drain_seconds=_number(
                environ, "PROXY_DRAIN_SECONDS", DRAIN_SECONDS_DEFAULT, least=0, most=DRAIN_SECONDS_LIMIT
            ),
            drain_notice_seconds=_number(
                environ, "PROXY_DRAIN_NOTICE_SECONDS", 0.0, least=0, most=DRAIN_NOTICE_SECONDS_LIMIT
            ),
            connections_max=int(_number(environ, "PROXY_CONNECTIONS_MAX", 10_000, least=1, most=CONNECTIONS_LIMIT)),
            header_bytes_max=int(
                _number(environ, "PROXY_HEADER_BYTES_MAX", 64 * 1024, least=1024, most=HEADER_BYTES_LIMIT)
            ),
            header_seconds=_number(environ, "PROXY_HEADER_SECONDS", 10, least=1, most=SECONDS_LIMIT),
            body_seconds=_number(environ, "PROXY_BODY_SECONDS", 300, least=1, most=SECONDS_LIMIT),
            write_seconds=_number(environ, "PROXY_WRITE_SECONDS", 120, least=1, most=SECONDS_LIMIT),
            access_log=_flag(environ, "PROXY_ACCESS_LOG", default=True),
            access_log_file=_told(environ, "PROXY_ACCESS_LOG_FILE")[1],
            access_log_peer=_flag(environ, "PROXY_ACCESS_LOG_PEER", default=False),
            trusted_proxies=_told(environ, "PROXY_TRUSTED_PROXIES")[1],
            management_port=int(_number(environ, "PROXY_MANAGEMENT_PORT", 0, least=0, most=65535)),
            management_host=_told(environ, "PROXY_MANAGEMENT_HOST")[1] or "127.0.0.1",
            private_urls=_flag(environ, "PROXY_PRIVATE_URLS", default=False),
            first_byte_hold_seconds=_number(environ, "PROXY_FIRST_BYTE_HOLD_SECONDS", 0.0, least=0, most=SECONDS_LIMIT),
        )


def _told(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable that counts, and what it says."""
    prefixed = PREFIX + name
    text = environ.get(prefixed, "").strip()
    return (prefixed, text) if text else (name, environ.get(name, "").strip())


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    name, text = _told(environ, name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ConfigurationError(f"{name}: must be a number") from None
    if not least <= value <= most:
        raise ConfigurationError(f"{name}: must be between {least:g} and {most:g}")
    return value


def _flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    name, text = _told(environ, name)
    text = text.lower()
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise ConfigurationError(f"{name}: must be true or false")
    return text in _TRUE
