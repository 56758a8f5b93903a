"""Charts as ECharts options, readable in light and dark. Each has a table behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["stacked", "timeline"]

COLOURS = ["#4c8dd6", "#3aa17e", "#d79b2f", "#a66bd0", "#d9646a", "#5bb5c0", "#8a94a3", "#c27a52"]
FEW = 3
"""Fewer points than this are no line: they are shown as points."""
_INK = "#8a94a3"
"""Grey that is read on white and on black."""


def _base(unit: str) -> dict[str, Any]:
    axis: dict[str, Any] = {"axisLine": {"lineStyle": {"color": _INK}}, "axisLabel": {"color": _INK, "fontSize": 11}}
    label = "${value}" if unit == "$" else "{value}"
    split = {"splitLine": {"lineStyle": {"color": _INK, "opacity": 0.2}}}
    return {
        "color": COLOURS, "animation": False, "backgroundColor": "transparent",
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 8, "right": 12, "top": 34, "bottom": 6, "containLabel": True},
        "legend": {"top": 0, "left": 0, "type": "scroll", "textStyle": {"color": _INK, "fontSize": 11},
                   "itemHeight": 8, "itemWidth": 12},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "category", **axis}, "aria": {"enabled": True},
        "yAxis": {"type": "value", **axis, **split, "axisLabel": {**axis["axisLabel"], "formatter": label}},
    }  # fmt: skip


def stacked(
    days: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str, marks: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Columns over days, one part a series; `marks`: what happened on which."""
    made: list[dict[str, Any]] = [
        {"name": name, "type": "bar", "stack": "all", "barMaxWidth": 56, "data": [*told]}
        for name, told in series.items()
    ]
    _mark(made, marks)
    options = _base(unit)
    return {**options, "xAxis": {**options["xAxis"], "data": [*days]}, "series": made}


def timeline(
    times: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str, marks: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Lines over time; `marks`: what happened when, as upright lines over it."""
    options = _base(unit)
    made: list[dict[str, Any]] = [
        {"name": name, "type": "line", "showSymbol": len(times) < FEW, "data": [*told], "areaStyle": {"opacity": 0.08}}
        for name, told in series.items()
    ]
    _mark(made, marks)
    return {**options, "xAxis": {**options["xAxis"], "data": [*times], "boundaryGap": False}, "series": made}


def _mark(made: list[dict[str, Any]], marks: Sequence[tuple[str, str]]) -> None:
    """Upright lines over the first series, each with its words."""
    if made and marks:
        told = [{"xAxis": at, "label": {"formatter": text, "fontSize": 10, "color": _INK}} for at, text in marks]
        made[0]["markLine"] = {"symbol": "none", "lineStyle": {"color": _INK}, "data": told}
