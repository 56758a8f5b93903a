"""docs/failures.md shows the taxonomy and the signatures as they are."""

from collections.abc import Iterator
from pathlib import Path

from apikeyrouter.domain.components.failure_taxonomy import MEANINGS
from apikeyrouter.infrastructure.adapters import failure_table as table

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
BILLED = {False: "no", True: "yes", None: "perhaps"}


def kind_rows() -> Iterator[str]:
    for one in MEANINGS.values():
        cells = (
            f"`{one.name}`", one.category.value, one.scope.value, one.action.value, BILLED[one.elsewhere],
            BILLED[one.billed], one.says,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def signature_rows() -> Iterator[str]:
    rows = {row.name: row for rows in table.TABLES.values() for row in rows}
    for row in rows.values():
        said = [row.text.pattern] if row.text else []
        said += [f"{row.header[0]}: {row.header[1]}"] if row.header else []
        cells = (
            f"`{row.name}`", row.meaning.name, " ".join(map(str, sorted(row.statuses))) or "any",
            " ".join(f"`{word}`" for word in sorted(row.words)) or "–",
            " ".join("`" + text.replace("|", "\\|") + "`" for text in said) or "–",
            table.SOURCES[row.name.split(".")[0]],
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def test_the_page_about_failures_shows_the_data() -> None:
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| `") and "(" not in line.split("|")[1]]
    assert shown == [*kind_rows(), *signature_rows()]
