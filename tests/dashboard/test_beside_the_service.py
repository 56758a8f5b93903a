"""`serve --dashboard`: the page in a process of its own, which begins and ends with the service."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

PAGE = re.compile(r"The operator's page: (http://\S+)")


def test_the_page_begins_and_ends_with_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_MANAGEMENT_API_KEY", "management-key-of-the-tests")
    arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(tmp_path / "data")]
    arguments += ["--dashboard", "--dashboard-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "apikeyrouter.cli", *arguments, "--watch-stdin"], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = next(told[1] for line in process.stdout if (told := PAGE.search(line)))
        assert "ticket" not in url
        assert httpx.get(f"{url}/sign-in").status_code == 200
    finally:
        process.stdin.close()
        for _ in process.stdout:
            pass
        process.wait(60)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) != 0
