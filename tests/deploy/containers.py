"""What the Dockerfile and the compose file say, read so that it can be run as processes on this machine.

There is no container engine in a test: paths of a container become paths below a folder, `host:port` of the compose
network becomes a port of this machine. Everything else (commands, arguments, environment, probes) is run as written.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.house.tree import ROOT

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(slots=True, kw_only=True)
class Stage:
    """One stage of a Dockerfile: its instructions in order, and what they leave behind."""

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def told(self, instruction: str) -> list[str]:
        """The arguments of every such instruction."""
        return [rest for name, rest in self.steps if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """The last such instruction's JSON form. HEALTHCHECK: what stands behind CMD."""
        rest = self.told(instruction)[-1]
        found: list[str] = json.loads(rest[rest.index("[") :])
        return found

    @property
    def environ(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(pair.split("=", 1) for rest in self.told("ENV") for pair in shlex.split(rest))


def dockerfile() -> list[Stage]:
    """The stages of the Dockerfile, in order."""
    stages: list[Stage] = []
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            stages.append(Stage(name=rest.partition(" AS ")[2]))
        elif stages:
            stages[-1].steps.append((instruction, " ".join(rest.split()) if "[" not in rest else rest))
    return stages


def compose(environ: Mapping[str, str]) -> dict[str, Any]:
    """The services of the compose file, with its variables put in. Errors: KeyError for one that must be set."""
    text = (ROOT / "docker-compose.yml").read_text()

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if found := environ.get(name):
            return found
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    services: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, text))["services"]
    return services


def process_environ(*layers: Mapping[str, Any]) -> dict[str, str]:
    """A container's environment: the layers over one another; of this process only where programs are."""
    merged = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    for layer in layers:
        merged |= {name: str(text) for name, text in layer.items()}
    return merged
