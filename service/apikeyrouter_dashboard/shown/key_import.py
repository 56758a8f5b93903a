"""Many keys at once: in which form they were given, and what became of each row. Their material is never shown."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, note, table

__all__ = ["OUTCOMES", "body_of", "imported", "rows_as_csv"]

Told = Mapping[str, Any]
COLUMN = "key_material"
SHOWN_MAX = 1000
OUTCOMES = {
    "refused": ("bad", "✕ refused"), "created": ("ok", "✓ registered"), "updated": ("held", "✓ changed"),
    "unchanged": ("free", "= there already"),
}  # fmt: skip
"""What may become of a row, as it is shown; what needs somebody first."""
WOULD = {"created": "✓ would be registered", "updated": "✓ would be changed", "refused": "✕ would be refused"}


def body_of(text: str) -> tuple[str, str, int]:
    """Content type and body for the API, and by how much its line numbers differ from those of the text.

    A JSON array, JSON lines, CSV whose first line names its columns; else a key a line, and nothing more.
    """
    told = text.lstrip("\ufeff \t\r\n")
    if told.startswith("["):
        return "application/json", text, 0
    if told.startswith("{"):
        return "application/x-ndjson", text, 0
    if COLUMN in told.partition("\n")[0]:
        return "text/csv", text, 0
    return "text/csv", f"{COLUMN}\n{text}", -1


def _sorted(answer: Told) -> list[Told]:
    order = list(OUTCOMES)
    return sorted(answer["rows"], key=lambda row: (order.index(row["outcome"]), row["line"]))


def imported(answer: Told, shift: int) -> Markup:
    """How many fared how, and what became of each row: those that were refused first."""
    counts = Markup(" ").join(
        badge(kind, f"{answer[name]} {_word(name, answer)}") for name, (kind, _) in OUTCOMES.items() if answer[name]
    )
    rows = [
        (row["line"] + shift, badge(OUTCOMES[row["outcome"]][0], _word(row["outcome"], answer)),
         row["id"] or "–", row["reason"] or "")
        for row in _sorted(answer)[:SHOWN_MAX]
    ]  # fmt: skip
    more = len(answer["rows"]) - SHOWN_MAX
    left_out = note(f"and {more} more rows; the file of results has them all") if more > 0 else Markup("")
    listed = table(["line", "result", "key", "why"], rows, none="there is no row", numbers=(0,))
    return Markup('<p class="counts">{}</p><div class="tall">{}</div>{}').format(counts, listed, left_out)


def _word(outcome: str, answer: Told) -> str:
    return (WOULD if answer["dry_run"] else {}).get(outcome, OUTCOMES[outcome][1])


def rows_as_csv(answer: Told, shift: int) -> str:
    """All results, in the order of the rows."""
    made = io.StringIO()
    writer = csv.writer(made)
    writer.writerow(["line", "outcome", "id", "reason"])
    rows: Sequence[Told] = answer["rows"]
    writer.writerows([row["line"] + shift, row["outcome"], row["id"] or "", row["reason"] or ""] for row in rows)
    return made.getvalue()
