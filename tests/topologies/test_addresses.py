"""Redis URLs: what each says, what is wrong with others; and unix sockets, databases and passwords."""

import pytest

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.redis_servers.address import RedisAddress, TlsOptions, parse_redis_url
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.servers import Server, binaries, running
from tests.topologies.books import booked, ledger_at, spent


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h", RedisAddress(topology="single", hosts=(("h", 6379),))),
        (
            "redis://us%40er:p%3Aw@h:7000/3",
            RedisAddress(topology="single", hosts=(("h", 7000),), username="us@er", password="p:w", database=3),
        ),
        ("redis://:pw@[::1]:7000", RedisAddress(topology="single", hosts=(("::1", 7000),), password="pw")),
        ("unix:///run/r.sock?db=2", RedisAddress(topology="single", path="/run/r.sock", database=2)),
        (
            "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            RedisAddress(
                topology="single", hosts=(("h", 6379),), tls=TlsOptions(ca_certs="/ca.pem", check_hostname=False),
                sentinel_tls=TlsOptions(ca_certs="/ca.pem", check_hostname=False),
            ),
        ),
        (
            "redis+sentinel://u:p@a,b:27000/main/1?sentinel_password=sp",
            RedisAddress(
                topology="sentinel", hosts=(("a", 26379), ("b", 27000)), username="u", password="p", database=1,
                master="main", sentinel_password="sp",
            ),
        ),
        (
            "rediss+sentinel://a/main?sentinel_ssl=false",
            RedisAddress(topology="sentinel", hosts=(("a", 26379),), master="main", tls=TlsOptions()),
        ),
        ("redis+cluster://a:1,b:2", RedisAddress(topology="cluster", hosts=(("a", 1), ("b", 2)))),
        (
            "rediss+cluster://a:1",
            RedisAddress(topology="cluster", hosts=(("a", 1),), tls=TlsOptions(), sentinel_tls=TlsOptions()),
        ),
    ],
)  # fmt: skip
def test_a_url_says(url: str, says: RedisAddress) -> None:
    assert parse_redis_url(url) == says
    assert "p:w" not in str(says) + repr(says)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "starts with one of"), ("redis://", "starts with one of"), ("", "starts with one of"),
        ("redis://h:port", "port that is no number"), ("redis://h/one", "database must be a number"),
        ("redis://h/1/2", "database must be a number"), ("redis://a,b", "several servers"),
        ("redis+sentinel://a", "needs the master's name"), ("redis+cluster://a/1", "a Cluster has no databases"),
        ("rediss+cluster://a?ssl_password=x", "take no ssl_password"),
        ("redis://h?ssl_kert=1", "unknown options ssl_kert"),
        ("rediss://h?ssl_cert_reqs=some", "ssl_cert_reqs is one of"),
        ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname is true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_redis_url(url.replace("://", "://u:hunter2@", 1) if url.endswith(("port", "one", "1")) else url)
    assert "hunter2" not in str(caught.value)


async def uses(url: str) -> None:
    """A booking and an entity by this URL."""
    async with ledger_at(url) as ledger:
        assert await booked(ledger)
        assert (await spent(ledger))[0] > 0
    store = RedisStateStore(url)
    await store.save_key(APIKey(id="k1", provider_id="openai", encrypted_material="v1:x:y"))
    assert await store.get_key("k1") is not None
    await store.aclose()


async def test_a_unix_socket_serves_both(any_server: Server) -> None:
    await uses(any_server.unix_url)


async def test_databases_are_apart(any_server: Server) -> None:
    await uses(any_server.url.replace("/0", "/3"))
    async with ledger_at(any_server.url.replace("/0", "/4")) as ledger:
        assert await spent(ledger) == (0, 0)


@pytest.mark.parametrize("flavour", list(binaries()))
async def test_a_password_lets_both_in(flavour: str) -> None:
    with running(flavour, options=("--requirepass", "p:w@d")) as server:
        await uses(server.url.replace("redis://", "redis://:p%3Aw%40d@"))
        await uses(server.unix_url + "&password=p%3Aw%40d")
