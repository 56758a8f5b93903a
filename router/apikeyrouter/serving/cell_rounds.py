"""Where there are several cells: a reserve asks one of them, and what is counted in one stays there."""

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.cells import CellLayout
from apikeyrouter.domain.components.pool import Option, Ranked
from apikeyrouter.domain.models.ranking import Standing
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["of_one_cell", "refuse_move"]


def of_one_cell(layout: CellLayout, ranked: Ranked) -> tuple[int, Ranked, list[tuple[Option, Standing]]]:
    """The cell of the best candidate, the candidates that live there, in their order, and the others."""
    cells = [layout.of_group(option.key.quota_group) for option in ranked.options]
    cell, ranking = cells[0], ranked.ranking
    if all(other == cell for other in cells):
        return cell, ranked, []
    mine = [at for at, other in enumerate(cells) if other == cell]
    aside = [(ranked.options[at], ranking.standings[at]) for at, other in enumerate(cells) if other != cell]
    part = ranking.but(mine)
    return cell, Ranked([ranked.options[at] for at in mine], part), aside


def refuse_move(catalogue: Catalogue, key_id: str, group: str) -> None:
    """What a key has used is counted in its cell, and stays there. A group's name tells whose lanes are whose.

    Raises:
        InvalidRequestError: the key would be in another cell, or nobody could tell in which.
    """
    layout, known = catalogue.layout, catalogue.keys.get(key_id)
    if layout is None:
        return
    named = next((one for one in layout.groups if group.startswith(f"{one}:")), None)
    if named is not None:
        raise InvalidRequestError(
            f"quota group {group!r} begins like {named!r}, which is in a cell of its own; name it otherwise",
            field="quota_group",
        )
    if known is not None and layout.of_group(known.quota_group) != layout.of_group(group):
        before, after = (layout.cells[layout.of_group(one)].name for one in (known.quota_group, group))
        raise InvalidRequestError(
            f"key {key_id!r} is accounted in cell {before}, and group {group!r} in {after}: it would be admitted in"
            " both; register it anew",
            field="quota_group",
        )
