"""`apikeyrouter config check`: whether a configuration file is sound, without a service."""

import json as jsonlib
from pathlib import Path

import typer

from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError
from apikeyrouter_proxy.doctor.surroundings import look_around

__all__ = ["run"]


def run(file: Path | None, *, json: bool) -> int:
    """Read a file as `serve` would, in this environment, and say what is wrong. The exit code: 1 when something is.

    Warnings (what is of no use, or not yet) are told and are no error. Errors: ConfigurationError without any file.
    """
    errors, warnings, counts = [], [], {}
    try:
        found = look_around(config=file).config
    except ApiKeyRouterError as exc:
        errors = [str(exc)]
    else:
        if found is None:
            raise ConfigurationError("no configuration file: name one, or set APIKEYROUTER_CONFIG")
        warnings = list(found.warnings)
        counts = {"keys": len(found.keys), "clients": len(found.clients), "policies": len(found.policies)}
    if json:
        typer.echo(jsonlib.dumps({"valid": not errors, "errors": errors, "warnings": warnings, **counts}))
        return int(bool(errors))
    for line in (*(f"error: {one}" for one in errors), *(f"warning: {one}" for one in warnings)):
        typer.echo(line)
    if not errors:
        typer.echo("sound: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return int(bool(errors))
