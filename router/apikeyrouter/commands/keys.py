"""`apikeyrouter keys`: a running service's keys, over its management API."""

import json as jsonlib
import sys
from typing import Any

import typer

from apikeyrouter.domain.models.system_error import ConfigurationError

__all__ = ["add_key", "show_keys"]

ANSWER_SECONDS_MAX = 10.0
COLUMNS = ("id", "provider_id", "state")


def show_keys(*, url: str, management_key: str, json: bool) -> int:
    """Print them. Errors: ConfigurationError when the service does not answer or refuses."""
    told = _call("GET", url, management_key)
    if json:
        typer.echo(jsonlib.dumps(told))
        return 0
    rows = told if isinstance(told, list) else told.get("keys", told.get("items", []))
    for row in rows:
        typer.echo("  ".join(str(row.get(column, "")) for column in COLUMNS))
    if not rows:
        typer.echo("no keys; add one with: apikeyrouter keys add --provider openai")
    return 0


def add_key(*, url: str, management_key: str, provider: str, json: bool) -> int:
    """Register the key on standard input. Errors: as `show_keys`, and for empty input."""
    material = _read_material()
    told = _call("POST", url, management_key, {"key_material": material, "provider_id": provider})
    typer.echo(jsonlib.dumps(told) if json else f"registered {told.get('id', told.get('key_id', '?'))}")
    return 0


def _read_material() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Key", hide_input=True))
    material = sys.stdin.readline().strip()
    if not material:
        raise ConfigurationError("no key on standard input; try: printenv OPENAI_API_KEY | apikeyrouter keys add …")
    return material


def _call(method: str, url: str, management_key: str, body: object = None) -> Any:
    import httpx

    try:
        answer = httpx.request(
            method,
            f"{url.rstrip('/')}/api/v1/keys",
            headers={"X-API-Key": management_key},
            json=body,
            timeout=ANSWER_SECONDS_MAX,
        )
    except httpx.HTTPError as exc:
        raise ConfigurationError(
            f"no service answers at {url} ({type(exc).__name__}); name another with --url"
        ) from exc
    if answer.is_success:
        return answer.json()
    if answer.status_code in (401, 403):
        raise ConfigurationError(f"{url} refuses this management key ({answer.status_code}): {answer.text[:200]}")
    raise ConfigurationError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
