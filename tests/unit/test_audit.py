"""What the dependency audit makes of a report."""

from typing import Any

import pytest
from tools.audit import verdict

FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "code", "line"),
    [
        ([FINE], 0, "1 dependencies audited, 0 vulnerabilities known"),
        ([FINE, BAD], 1, "b 2: CVE-1, fixed in 2.1"),
        ([FINE, SKIPPED], 0, "not audited: c: not found"),
        ([SKIPPED], 1, "0 dependencies audited, 0 vulnerabilities known"),
    ],
)
def test_a_report_is_bad_when_something_is_known_or_nothing_was_audited(
    dependencies: list[dict[str, Any]], code: int, line: str
) -> None:
    lines, told = verdict({"dependencies": dependencies})
    assert told == code
    assert line in lines
