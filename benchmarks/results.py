"""`PEERS.md`: what was measured of ours and of others by the same yardstick, section by section."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Section, machine_facts, replace_sections

__all__ = ["PEERS_PAGE", "keep_peers"]

PEERS_PAGE = Path(__file__).parent / "PEERS.md"
_HEAD = """# Ours and peers

Written section by section by `python -m benchmarks.exactness --write` and `make bench-peers`; do not edit by hand. The
peers' configurations are in `benchmarks/peers/`; each section says when and how it was measured.

## Budgets not met

None.
"""


def keep_peers(sections: Sequence[Section]) -> None:
    """Put sections in place of those of the same title, with the command, the time and the machine."""
    if not PEERS_PAGE.exists():
        PEERS_PAGE.write_text(_HEAD, encoding="utf-8")
    command = shlex.join(["python", "-m", _module(), *sys.argv[1:]])
    for section in sections:
        section.notes += [f"`{command}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", *machine_facts()]
    replace_sections(PEERS_PAGE, sections)


def _module() -> str:
    path = Path(sys.argv[0]).resolve()
    name = path.parent.name if path.stem == "__main__" else path.stem
    return f"benchmarks.{name}"
