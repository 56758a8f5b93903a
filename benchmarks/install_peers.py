"""Other gateways, installed into build/peers with the ordinary clients of their registries, at the versions measured.

`python -m benchmarks.install_peers`: what is there already is left; what cannot be had here is said. The Rust one is
compiled, which takes some ten minutes of a core.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.processes import root

__all__ = ["PEERS", "Peer", "main", "program"]

FOLDER = root() / "build" / "peers"
INSTALL_SECONDS_MAX = 1_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One gateway: the client that installs it, with which words, and where its program is then (in FOLDER)."""

    name: str
    needs: str
    steps: Sequence[Sequence[str]]
    program: str
    environ: Mapping[str, str] = field(default_factory=dict)


PEERS = (
    Peer(
        name="litellm", needs=sys.executable, program="litellm/bin/litellm",
        steps=(
            (sys.executable, "-m", "venv", "litellm"),
            ("litellm/bin/pip", "install", "-q", "--disable-pip-version-check", "litellm[proxy]==1.106.2", "uvloop"),
        ),
    ),
    Peer(
        name="portkey", needs="npm", program="portkey/node_modules/@portkey-ai/gateway/build/start-server.js",
        steps=(("npm", "install", "--silent", "--prefix", "portkey", "@portkey-ai/gateway@1.15.2"),),
    ),
    Peer(
        name="onwards", needs="cargo", program="onwards/bin/onwards",
        steps=(("cargo", "install", "--quiet", "--locked", "--root", "onwards", "onwards@1.2.0"),),
        environ={"CARGO_TARGET_DIR": "onwards/target"},
    ),
)  # fmt: skip


def program(name: str) -> str | None:
    """Where a peer's program is: the variable of its name in capitals, what was installed here, else the path."""
    installed = [FOLDER / peer.program for peer in PEERS if peer.name == name]
    here = next((str(path) for path in installed if path.exists()), None)
    return os.environ.get(name.upper()) or here or shutil.which(name)


def main() -> int:
    """Install them all. Returns 0: a peer that is not there is left out of the comparison, which says so."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for peer in PEERS:
        if found := program(peer.name):
            print(f"{peer.name}: {found}")
        elif shutil.which(peer.needs) is None:
            print(f"{peer.name}: {peer.needs} is not there")
        else:
            print(f"{peer.name}: {_installed(peer)}")
    return 0


def _installed(peer: Peer) -> str:
    for step in peer.steps:
        command = [str(FOLDER / step[0]) if (FOLDER / step[0]).exists() else step[0], *step[1:]]
        try:
            told = subprocess.run(
                command, cwd=FOLDER, env={**os.environ, **peer.environ}, capture_output=True, text=True, check=False,
                timeout=INSTALL_SECONDS_MAX,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"not installed: {exc}"
        if told.returncode:
            return f"not installed: {told.stderr[-300:]}"
    return str(FOLDER / peer.program)


if __name__ == "__main__":
    sys.exit(main())
