"""Numbers, times and small pieces of HTML. What is not known is called unknown, never zero."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

__all__ = [
    "UNKNOWN", "Row", "badge", "bar", "button", "count", "dollars", "empty", "facts_strip", "first_sentence",
    "moment", "note", "percent", "span_of", "table", "tight", "told_at", "when",
]  # fmt: skip

UNKNOWN = Markup('<span class="unknown">unknown</span>')
Row = Sequence[object]
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def moment(told: str | None) -> datetime | None:
    """A time of the API's."""
    return None if not told else datetime.fromisoformat(told)


def span_of(seconds: float) -> str:
    """A duration in its two largest units: 3 min, 1 h 20 min."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for name, size in _UNITS:
        if left >= size and len(parts) < 2:
            parts.append(f"{left // size} {name}")
            left %= size
        elif parts:
            break
    return " ".join(parts[: 1 if seconds < 600 and len(parts) == 2 and seconds >= 120 else 2]) or "0 s"


def when(told: str | None, now: datetime, *, unknown: str = "unknown") -> Markup:
    """A time as a person says it, "in 3 min", with the whole of it and its zone behind it."""
    at = moment(told)
    if at is None:
        return Markup('<span class="unknown">{}</span>').format(unknown)
    seconds = (at - now).total_seconds()
    words = f"in {span_of(seconds)}" if seconds >= 0.5 else f"{span_of(-seconds)} ago" if seconds < -0.5 else "now"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), told_at(at), words)


def first_sentence(text: object, most: int = 90) -> str:
    """What a provider said, as far as a glance needs it."""
    told = str(text).replace("\n", " ").partition(". ")[0].rstrip(".")
    return told if len(told) <= most else told[: most - 1] + "…"


def told_at(at: datetime) -> str:
    """A time in full, with its zone."""
    return at.strftime("%Y-%m-%d %H:%M:%S ") + (at.tzname() or "")


def after(now: datetime, seconds: float) -> str:
    """The time so many seconds from now, as the API would say it."""
    return (now + timedelta(seconds=seconds)).isoformat()


def dollars(amount: float | str | None) -> str:
    """Money, as exact as it is worth reading."""
    if amount is None:
        return "unknown"
    value = float(amount)
    if value and abs(value) < 0.01:
        return f"${value:.6f}".rstrip("0")
    return f"${value:,.2f}"


def count(number: float | None) -> str:
    """A number with its thousands apart; large ones short."""
    if number is None:
        return "unknown"
    if abs(number) >= 1e6:
        return f"{number / 1e6:,.2f} M"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:,.2g}"


def percent(share: float | None) -> str:
    """A share, 0 … 1, in per cent."""
    if share is None:
        return "unknown"
    fine = 0 < share < 0.01 or 0.99 < share < 1
    return f"{share * 100:.1f} %" if fine else f"{share * 100:.0f} %"


def badge(kind: str, text: str) -> Markup:
    """A state in a word, with a mark beside its colour."""
    return Markup('<span class="badge is-{}">{}</span>').format(kind, text)


def bar(parts: Iterable[tuple[str, float]], label: str) -> Markup:
    """Parts of a whole (shares, 0 … 1) side by side, and what they say to whoever does not see them."""
    pieces = Markup("").join(
        Markup('<i class="is-{}" style="width:{}%"></i>').format(kind, round(max(0.0, min(1.0, share)) * 100, 1))
        for kind, share in parts
        if share > 0
    )
    return Markup('<span class="bar" role="img" aria-label="{}" title="{}">{}</span>').format(label, label, pieces)


def button(act: str, text: str, *, kind: str = "", title: str = "", **data: str) -> Markup:
    """A button whose action the page takes; `data` goes with it."""
    told = Markup("").join(Markup(' data-{}="{}"').format(name, value) for name, value in data.items())
    keep = " ".join((act, *data.values()))
    return Markup('<button type="button" class="act {}" data-act="{}" data-keep="{}" title="{}"{}>{}</button>').format(
        kind, act, keep, title or text, told, text
    )


def table(columns: Sequence[str], rows: Iterable[Row], *, none: str = "nothing", numbers: Iterable[int] = ()) -> Markup:
    """A table. `numbers`: places of columns that stand to the right."""
    right = frozenset(numbers)

    def line(row: Row, cells: Sequence[Markup]) -> Markup:
        told = Markup("").join(cell.format(value) for cell, value in zip(cells, row, strict=True))
        return Markup("<tr>{}</tr>").format(told)

    places = [("n" if place in right else "", name) for place, name in enumerate(columns)]
    labels = [Markup(' data-label="{}"').format(name) if name else "" for _, name in places]
    cells = [_cell("td", kind, label) for (kind, _), label in zip(places, labels, strict=True)]
    body = Markup("").join(line(row, cells) for row in rows)
    if not body:
        return note(none)
    head = line(columns, [_cell("th", kind, Markup(' scope="col"')) for kind, _ in places])
    return Markup('<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(head, body)


def _cell(tag: str, kind: str, attributes: str) -> Markup:
    """A cell of a column, with a place for what is in it. On narrow screens a cell is shown under its own label."""
    told = Markup("<{0}{1}{2}>{{}}</{0}>").format(tag, Markup(' class="n"') if kind else "", attributes)
    return Markup(told)  # noqa: S704 (made of what is escaped)


def facts_strip(facts: Iterable[tuple[str, object]]) -> Markup:
    """Figures side by side, each under its name."""
    cells = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, told) for name, told in facts)
    return Markup('<dl class="strip">{}</dl>').format(cells)


def tight(text: object) -> Markup:
    """A text that stays on one line."""
    return Markup('<span class="tight">{}</span>').format(text)


def note(text: object) -> Markup:
    """A line in the background."""
    return Markup('<p class="dim">{}</p>').format(text)


def empty(what: str, steps: Sequence[str]) -> Markup:
    """What to do where there is nothing yet."""
    told = Markup("").join(Markup("<li>{}</li>").format(step) for step in steps)
    return Markup('<div class="empty"><h3>{}</h3><ol>{}</ol></div>').format(what, told)


def by(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by one of their fields; where it is null, by "none"."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row[name]) if row[name] is not None else "none", []).append(row)
    return found
