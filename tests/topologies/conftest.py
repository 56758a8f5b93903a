"""Deployments that a module's tests share."""

from collections.abc import Iterator

import pytest

from tests.servers import binaries
from tests.topologies.deployments import Cluster, Sentinels, cluster, sentinels

FLAVOURS = list(binaries())


@pytest.fixture(scope="module", params=FLAVOURS)
def watched(request: pytest.FixtureRequest) -> Iterator[Sentinels]:
    """A primary, two replicas, three Sentinels, of each server that is installed."""
    with sentinels(request.param) as made:
        yield made


@pytest.fixture(scope="module", params=FLAVOURS)
def sharded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three primaries, three replicas, of each server that is installed."""
    with cluster(request.param) as made:
        yield made
