"""Configuration, formats and the tokenizer: what is taken, what is refused, and how things are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter.simulator.app import SimulatedProviders
from apikeyrouter.simulator.config import ConfigError, default_config, load_config, parse_config
from apikeyrouter.simulator.formats import first_of_next_month, go_duration, next_day, rfc3339
from apikeyrouter.simulator.server import run
from apikeyrouter.simulator.tokens import compose, read_markers, slices, text_bytes

MS = 1_000_000
SECOND = 1_000 * MS


def one(**fields: Any) -> dict[str, Any]:
    """A configuration with one organisation."""
    return {"organisations": [{"id": "org", **fields}]}


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"organisation": []}, "organisation"),
        (one(limits=[{"rpm": -1}]), r"\$\.organisations\[0\]\.limits\[0\]\.rpm"),
        (one(limits=[{"rpm": 2**53 + 1}]), r"\.rpm"),
        (one(limits=[{"rpm": 1.5}]), r"\.rpm"),
        (one(limits=[{"rpm": 1, "kind": "leaky"}]), r"\.kind"),
        (one(limits=[{"rpd": 1, "timezone": "Mars/Olympus"}]), "Mars/Olympus"),
        (one(limits=[{"spend_usd": "much"}]), "much"),
        (one(limits=[{"spend_usd": 0}]), "spend_usd"),
        (one(prices={"m": {"input": "0.0000001", "output": 1}}), "pico-dollar"),
        (one(prices={"m": {"input": "nan", "output": 1}}), "pico-dollar"),
        (one(keys=[""]), r"\.keys"),
        (one(dialect="cohere"), r"\.dialect"),
        (one(latency_ms=-1), r"\.latency_ms"),
        ({"organisations": [{"id": "a"}, {"id": "a"}]}, "twice"),
        ({"organisations": [{"id": "a", "keys": ["x"]}, {"id": "b", "keys": ["x"]}]}, "twice"),
        ({"failures": [{"name": "x", "probability": 2}]}, r"\.probability"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_place(config: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        parse_config(config)


def test_an_unknown_failure_in_the_configuration_stops_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sim.json"
    path.write_text(json.dumps({"failures": [{"name": "nonsense"}]}))
    assert run(["--config", str(path)]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert run(["--config", str(tmp_path / "missing.json")]) == 2


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "sim.json").write_text('{"organisations": [{"id": "a", "keys": ["k"], "limits": [{"rpm": 5}]}]}')
    (tmp_path / "sim.yaml").write_text("organisations:\n  - {id: a, keys: [k], limits: [{rpm: 5}]}\n")
    assert load_config(str(tmp_path / "sim.json")) == load_config(str(tmp_path / "sim.yaml"))


def test_the_built_in_configuration_is_two_openai_organisations_and_an_anthropic_one() -> None:
    providers = SimulatedProviders(parse_config(default_config()))
    assert [org.dialect for org in providers.organisations.values()] == ["openai", "openai", "anthropic"]
    assert [len(org.keys) for org in providers.organisations.values()] == [3, 2, 2]


@pytest.mark.parametrize(
    ("duration_ns", "written"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12 * MS, "12ms"),
        (999 * MS + 1, "1s"),
        (1 * SECOND, "1s"),
        (8_640 * MS, "8.64s"),
        (360 * SECOND, "6m0s"),
        (179_560 * MS, "2m59.56s"),
        (59_999 * MS + 1, "1m0s"),
        (86_400 * SECOND, "24h0m0s"),
    ],
)
def test_durations_are_written_as_go_does(duration_ns: int, written: str) -> None:
    assert go_duration(duration_ns) == written


def test_dates_are_written_as_anthropic_does() -> None:
    assert rfc3339(1_755_780_059 * SECOND + 1) == "2025-08-21T12:41:00Z"
    assert rfc3339(1_755_780_060 * SECOND) == "2025-08-21T12:41:00Z"
    assert next_day(1_795_219_200 * SECOND) == "2026-11-21"
    assert next_day(1_795_219_200 * SECOND + 1) == "2026-11-22"
    assert first_of_next_month(1_795_219_200 * SECOND) == "2026-12-01"
    assert first_of_next_month(1_798_675_200 * SECOND) == "2027-01-01"


@pytest.mark.parametrize("prompt", ["", "hello", "naïve café", "世界 😀 " * 30, "x" * 5_000])
@pytest.mark.parametrize("tokens", [1, 2, 7, 24, 300])
def test_an_answer_has_exactly_the_bytes_of_its_tokens_however_it_is_cut(prompt: str, tokens: int) -> None:
    text = compose(prompt, tokens)
    assert text_bytes(text) == tokens * 4
    for size in (1, 3, 1_000):
        pieces = list(slices(text, tokens_per_slice=size))
        assert "".join(piece for piece, _ in pieces) == text
        assert pieces[-1][1] == tokens
        counts = [count for _, count in pieces]
        assert counts == sorted(counts)


def test_markers_are_read_and_taken_out_of_the_text() -> None:
    markers = read_markers("a [[fail_once:server_error:id7]] b [[tokens:9]][[tool]] c")
    assert (markers.fail, markers.fail_once, markers.tokens, markers.tool) == (None, "server_error:id7", 9, True)
    assert markers.text == "a  b  c"
    assert read_markers("[[fail:stall_mid_stream:3:1]]").fail == "stall_mid_stream:3:1"
    assert read_markers("[[other]]").text == "[[other]]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("organisations: []\nseed: 1\nseed: 2\n", "line 3, column 1: 'seed' is written twice"),
        ("organisations: &a []\nseed: *a\n", "line 2, column 7: aliases"),
        ("organisations: [", "not valid YAML: line"),
    ],
)
def test_a_yaml_file_is_read_strictly(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "simulator.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_config(str(file))
