"""What a worker has in memory before its first request: only what every worker needs."""

import subprocess
import sys

RARE = ("aiohttp", "typer", "pymongo", "genai_prices", "apikeyrouter.simulator", "nicegui", "socketio",
        "apikeyrouter_dashboard")  # fmt: skip


def test_a_worker_imports_nothing_that_few_installations_use() -> None:
    code = (
        "import sys, apikeyrouter_proxy.main, apikeyrouter_proxy.worker;"
        f"print(*[name for name in {RARE!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
