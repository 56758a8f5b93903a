"""`apikeyrouter capacity`: what it reckons, that a simulation agrees, and that docs/capacity.md shows it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.capacity import BEGIN, END, RATES, simulate

from apikeyrouter.commands.capacity import MEASURED, Load, plan_for, server_us
from tests.cli.processes import command

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"


@pytest.mark.parametrize("rps", RATES)
def test_nobody_is_used_beyond_his_share_and_one_less_would_be(rps: int) -> None:
    load = Load(rps=rps)
    plan = plan_for(load)
    assert plan.worker_load <= load.worker_load
    assert plan.server_load <= load.server_load
    assert plan.workers == 1 or plan.worker_load * plan.workers / (plan.workers - 1) > load.worker_load
    if plan.cells > 2:
        assert plan.server_load * plan.cells / (plan.cells - 1) > load.server_load


def test_what_is_under_way_and_what_has_ended_takes_memory() -> None:
    plan = plan_for(Load(rps=1_000, seconds=10, keys=50))
    assert plan.open_calls == 10_000
    kept = 10_000 * MEASURED.reservation_bytes + 61_000 * MEASURED.tombstone_bytes
    assert plan.server_bytes == pytest.approx(kept, rel=0.3)
    assert plan_for(Load(rps=1_000, seconds=20, keys=50)).server_bytes > plan.server_bytes
    assert plan_for(Load(rps=1_000, seconds=10, keys=5_000)).worker_bytes > plan.worker_bytes


def test_a_slab_spares_the_server_and_a_slower_core_needs_more() -> None:
    load = Load(rps=100_000)
    slabs = replace(load, calls_per_slab=16)
    assert server_us(slabs) == server_us(load) / 16
    assert plan_for(slabs).cells < plan_for(load).cells
    assert plan_for(load, MEASURED.times(2)).workers > plan_for(load).workers


def test_what_cannot_be_served_is_said() -> None:
    with pytest.raises(ValueError, match="no room"):
        plan_for(Load(rps=1e8, keys=100_000))


@pytest.mark.parametrize("rps", [5_000, 100_000])
def test_the_simulation_finds_the_loads_that_are_reckoned(rps: int) -> None:
    load = Load(rps=rps)
    plan = plan_for(load)
    seen = simulate(load, plan, requests=4_000)
    assert seen == simulate(load, plan, requests=4_000)
    assert seen.worker_load == pytest.approx(plan.worker_load, abs=0.04)
    assert seen.server_load == pytest.approx(plan.server_load, abs=0.04)
    assert seen.keeps_up


def test_a_cell_that_is_asked_more_than_it_can_do_does_not_keep_up() -> None:
    load = Load(rps=30_000)
    plan = replace(plan_for(load), cells=1)
    assert not simulate(load, plan, requests=8_000).keeps_up


def test_the_page_has_the_numbers_of_the_model() -> None:
    tables = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = dict(re.findall(r"(?m)^\| ([\d,]+) \| ([\d,]+ \| [\d,]+) \| \d+% ·", tables))
    reckoned = {f"{rps:,}": plan_for(Load(rps=rps)) for rps in RATES}
    assert rows == {rps: f"{plan.workers:,} | {plan.cells:,}" for rps, plan in reckoned.items()}


def test_the_command_says_it_in_words_and_for_programs(tmp_path: Path) -> None:
    words = command("capacity", "--rps", "20000", "--keys", "500", cwd=tmp_path)
    assert "workers" in words.stdout
    assert "µs a request" in words.stdout
    told = json.loads(command("capacity", "--rps", "20000", "--keys", "500", "--json", cwd=tmp_path).stdout)
    plan = plan_for(Load(rps=20_000, keys=500))
    assert (told["workers"], told["cells"]) == (plan.workers, plan.cells)
    refused = command("capacity", "--rps", "100000000", "--keys", "100000", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no room" in refused.stderr
