"""Deployments that a module's tests share."""

import os
from collections.abc import Iterator

import pytest

from tests.servers import binaries
from tests.topologies.deployments import Cluster, Sentinels, cluster, sentinels

FLAVOURS = list(binaries())
WATCHED = FLAVOURS if os.environ.get("AKR_LONG") else FLAVOURS[:1]
"""Failovers by Sentinels take seconds, of the second kind of server, too: `make faults`."""


@pytest.fixture(scope="module", params=WATCHED)
def watched(request: pytest.FixtureRequest) -> Iterator[Sentinels]:
    """A primary, two replicas, three Sentinels, of each server that is installed."""
    with sentinels(request.param) as made:
        yield made


@pytest.fixture(scope="module", params=FLAVOURS)
def sharded(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three primaries, three replicas, of each server that is installed."""
    with cluster(request.param) as made:
        yield made
