"""Three books of every broken stream: what the SDK raised, what the ledger booked, what the provider billed.

The rows are those of `providers.md` §3.2; then one recorded stream of each dialect is ended, and cut, at every byte.
Here without a service in between; `tests/service/test_service_triples.py` has one.
"""

from contextlib import nullcontext

import pytest

from apikeyrouter import ProviderError
from tests.router.triples import BROKEN, DIALECTS, REFUSED, ROWS, at_bytes, books, routed, sdk, situation


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("failure", ROWS)
async def test_each_situation_has_its_triple(name: str, failure: str) -> None:
    async with books(name) as made, sdk(made, name) as read:
        await situation(made, name, failure, read)


@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "gemini"])
async def test_a_stream_that_ends_at_any_byte_has_its_triple(name: str) -> None:
    async with books(name) as made:
        tried = await at_bytes(
            made, name, "end_at_byte", lambda lane: sdk(made, name, lane), broken=BROKEN[name], refused=REFUSED[name]
        )
        assert tried > 80


@pytest.mark.parametrize("how", ["end_at_byte", "cut_at_byte"])
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_stream_that_ends_or_breaks_at_any_byte_has_its_triple_in_the_library(name: str, how: str) -> None:
    async with books(name) as made:
        door = lambda lane: nullcontext(routed(made, lane))  # noqa: E731
        tried = await at_bytes(made, name, how, door, broken=ProviderError, refused=ProviderError, step=1)
        assert tried > 500
