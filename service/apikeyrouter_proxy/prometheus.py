"""Prometheus' text format from counters: each metric aggregates the series over the labels it does not show."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from apikeyrouter.infrastructure.observability import metric_names as names
from apikeyrouter.infrastructure.observability.metric_names import METRICS, MetricName
from apikeyrouter_proxy import metrics as places
from apikeyrouter_proxy.metrics import Counters

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Samples = dict[tuple[str, ...], int]
_LABELS = msgspec.json.Decoder(list[str])
_ROUTE, _PROVIDER, _MODEL, _OUTCOME = range(4)


def render(counters: Counters, gauges: Mapping[str, Mapping[tuple[str, ...], int]]) -> str:
    """Everything in METRICS that has a value. `gauges`: metric name → label values → value."""
    series, samples = _read(counters)
    for name, values in gauges.items():
        samples.setdefault(name, {}).update(values)
    lines: list[str] = []
    for metric in METRICS:
        if metric.kind == "histogram":
            lines += _histogram(metric, series)
        else:
            lines += _plain(metric, samples.get(metric.name, {}))
    return "\n".join(lines) + "\n"


Series = list[tuple[list[str], list[int]]]


def _read(counters: Counters) -> tuple[Series, dict[str, Samples]]:
    series: Series = []
    samples: dict[str, Samples] = {}
    for key, values in counters.items():
        labels = _LABELS.decode(key)
        if len(labels) == 4:
            series.append((labels, values))
            _add_series(samples, labels, values)
        elif len(labels) == 2:
            _add(samples, labels[1], (), values[0])
        else:
            _add(samples, names.DENIALS.name, (labels[0],), values[0])
    return series, samples


def _add_series(samples: dict[str, Samples], labels: list[str], values: list[int]) -> None:
    route, provider, model, _ = labels
    _add(samples, names.REQUESTS.name, tuple(labels), values[places.REQUESTS])
    if not provider:
        return
    _add(samples, names.ATTEMPTS.name, (route, provider, model), values[places.ATTEMPTS])
    _add(samples, names.COST.name, (provider, model), values[places.COST])
    for direction, place in (("input", places.INPUT), ("output", places.OUTPUT), ("cached_input", places.CACHED)):
        _add(samples, names.TOKENS.name, (provider, model, direction), values[place])


def _add(samples: dict[str, Samples], name: str, labels: tuple[str, ...], value: int) -> None:
    known = samples.setdefault(name, {})
    known[labels] = known.get(labels, 0) + value


_HISTOGRAMS: dict[str, tuple[tuple[int, ...], int, int, Sequence[int]]] = {
    names.DURATION.name: ((_ROUTE, _PROVIDER), places.DURATION, places.DURATION_SUM, places.DURATION_BOUNDS_US),
    names.OVERHEAD.name: ((_ROUTE,), places.OVERHEAD, places.OVERHEAD_SUM, places.OVERHEAD_BOUNDS_US),
    names.FIRST_TOKEN.name: (
        (_PROVIDER, _MODEL),
        places.FIRST_TOKEN,
        places.FIRST_TOKEN_SUM,
        places.FIRST_TOKEN_BOUNDS_US,
    ),
}
"""Metric → which of the four labels it shows, its first bucket, its sum, its bounds."""


def _histogram(metric: MetricName, series: Series) -> list[str]:
    shown, first, sum_at, bounds = _HISTOGRAMS[metric.name]
    grouped: dict[tuple[str, ...], list[int]] = {}
    for labels, values in series:
        total = grouped.setdefault(tuple(labels[at] for at in shown), [0] * (len(bounds) + 2))
        for at in range(len(bounds) + 1):
            total[at] += values[first + at]
        total[-1] += values[sum_at]
    lines = _head(metric) if grouped else []
    for label_values, total in sorted(grouped.items()):
        if any(total[:-1]):
            lines += _buckets(metric, label_values, total, bounds)
    return lines


def _buckets(metric: MetricName, label_values: tuple[str, ...], total: list[int], bounds: Sequence[int]) -> list[str]:
    lines, running = [], 0
    for bound, count in zip([*(f"{bound / 1e6:g}" for bound in bounds), "+Inf"], total[:-1], strict=True):
        running += count
        labels = _labels((*metric.labels, "le"), (*label_values, bound))
        lines.append(f"{metric.name}_bucket{labels} {running}")
    labels = _labels(metric.labels, label_values)
    return [
        *lines,
        f"{metric.name}_sum{labels} {total[-1] / 1e6:.6f}",
        f"{metric.name}_count{labels} {running}",
    ]


def _plain(metric: MetricName, samples: Samples) -> list[str]:
    lines = _head(metric) if samples else []
    return lines + [
        f"{metric.name}{_labels(metric.labels, values)} {value}" for values, value in sorted(samples.items())
    ]


def _head(metric: MetricName) -> list[str]:
    return [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]


def _labels(label_names: Iterable[str], values: Iterable[str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(label_names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
