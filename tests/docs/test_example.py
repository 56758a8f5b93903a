"""The comprehensive example runs from nothing, and shows what its README says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.processes import clean_environ

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PROGRAM = EXAMPLES / "comprehensive-usage-example.py"
SHOWN = [
    "WARNING: placeholder keys", "registering it again gives the same key: True", "OPENAI_KEY_2 has 1,000,000 tokens",
    "cost 0.6 + reliability 0.4", "streamed: You said", "after 2 attempts", "500 left, critical", "0 left, exhausted",
    "refused before it was sent: team:interns", "soft: served, marked ['team:interns:daily']", "generation 1",
    "available -> disabled: maintenance", "request.completed", "decision: req_", "objective cost;",
    "after trouble at the first: anthropic", "12 of 12", "development  OPENAI_KEY_4", "production   OPENAI_KEY_1",
    "europe would leave 2 of 4 keys", "refused: denied by policy 'nowhere'", "POST /v1/chat/completions: 'You said",
    "POST /api/v1/keys: 201", "'status': 'healthy'", "GET /state:",
]  # fmt: skip


def test_it_runs_from_nothing_and_visits_every_station(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(PROGRAM)],
        cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    assert re.findall(r"^(\d+)\. ", told.stdout, re.MULTILINE) == [str(number) for number in range(1, 12)]
    assert [text for text in SHOWN if text not in told.stdout] == [], told.stdout
    assert told.stderr == ""
    listed = re.findall(r"^\| (\d+) ", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert listed == [str(number) for number in range(1, 12)]


def test_it_refuses_placeholders_where_money_is_spent(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(PROGRAM), "--real"],
        cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.returncode == 1
    assert "OPENAI_KEY_1" in told.stderr
