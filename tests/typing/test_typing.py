"""The public types, as a user's type checker sees them."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_users_code_checks_under_strict_rules(tmp_path: Path) -> None:
    """One run for both: what takes the time is the library itself."""
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nwarn_unused_ignores = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    names = [str(HERE / name) for name in ("usage.py", "mistakes.py")]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
