"""`apikeyrouter quickstart` (`make run`): a working service from nothing, and the lines to try it with."""

import json as jsonlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from apikeyrouter.commands.beside import running_beside
from apikeyrouter.commands.dashboard import PORT, beside_the_service, is_installed
from apikeyrouter.commands.serve import ServeArguments, make_options, one_line
from apikeyrouter.simulator.config import Config, full_keys, load_config
from apikeyrouter.simulator.prices import DEFAULT_PRICES
from apikeyrouter_proxy.doctor.surroundings import look_around
from apikeyrouter_proxy.server import ServeOptions, serve

__all__ = ["router_config_for", "run", "running_simulator"]

HOST = "127.0.0.1"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-5"}
_CURLS = {
    "openai": """curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
    "anthropic": """curl -s {url}/v1/messages -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01' \\
  -d '{{"model": "{model}", "max_tokens": 64, "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
}
_SDKS = {
    "openai": """from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="any")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content)""",
    "anthropic": """from anthropic import Anthropic

client = Anthropic(base_url="{url}", api_key="any")
answer = client.messages.create(model="{model}", max_tokens=64, messages=[{{"role": "user", "content": "Hello"}}])
print(answer.content[0].text)""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is told once the service listens."""

    provider: str
    simulated: bool
    management_key: str = field(repr=False)
    generated: bool


def run(*, host: str | None, port: int | None, workers: int | None, json: bool) -> int:
    """Serve until stopped; the exit code. Errors: ConfigurationError, PortTakenError."""
    around = look_around()
    environ = dict(os.environ)
    management_key = around.settings.management_api_key or f"mk-{secrets.token_urlsafe(24)}"
    environ["APIKEYROUTER_MANAGEMENT_API_KEY"] = management_key
    arguments = ServeArguments(host=host or environ.get("PROXY_HOST") or HOST, port=port, workers=workers)
    options = replace(make_options(arguments, around), ephemeral=True, environ=environ)
    providers = around.provider_ids
    plan = _Plan(
        provider=next((provider for provider in MODELS if provider in providers), "openai"),
        simulated=not providers,
        management_key=management_key,
        generated=not around.settings.management_api_key,
    )
    with ExitStack() as stack:
        if plan.simulated:
            # Made-up keys have no business in a Redis of the user's.
            options = stack.enter_context(_with_simulated_providers(replace(options, redis_url=None)))
        tell = _teller(plan, json=json)
        if not json and is_installed():
            beside = beside_the_service(tell, typer.echo, port=PORT, admin_key=management_key)
            tell = stack.enter_context(beside)
        return serve(options, tell=tell)


@contextmanager
def running_simulator(config: Path | None = None) -> Iterator[str]:
    """Simulated providers in a process of their own, stopped at exit (and when this process dies). Their URL."""
    arguments = ["-m", "apikeyrouter.simulator", "--port", "0"]
    if config is not None:
        arguments += ["--config", str(config)]
    with running_beside(arguments, says="ready", what="the simulated providers") as url:
        yield url


def router_config_for(simulated: Config, url: str, **sections: Any) -> dict[str, Any]:
    """The router's configuration for simulated providers: their organisations as quota groups, their limits as ours."""
    keys = []
    limits: list[dict[str, Any]] = []
    for organisation in simulated.organisations:
        for number, key in enumerate(full_keys(organisation), start=1):
            keys.append(
                {
                    "id": f"{organisation.id}-{number}",
                    "provider": organisation.dialect,
                    "key": key.key,
                    "quota_group": organisation.id,
                    "models": [MODELS[organisation.dialect]],
                }
            )
        for row in organisation.limits:
            told = {name: getattr(row, name) for name in _LIMIT_FIELDS if getattr(row, name) is not None}
            limits.append({"quota_group": organisation.id, **told})
    providers = {
        "openai": {"adapter": "openai", "base_url": f"{url}/v1"},
        "anthropic": {"adapter": "anthropic", "base_url": url},
    }
    return {"providers": providers, "keys": keys, "limits": limits, "prices": _prices(), **sections}


def _prices() -> list[dict[str, Any]]:
    """What the simulated providers charge, in dollars per million tokens: then both books use the same prices."""
    rows = []
    for provider, model in MODELS.items():
        price = DEFAULT_PRICES[provider][model]
        dollars = {name: value / _PICOUSD_PER_DOLLAR_PER_MTOK for name, value in price._asdict().items()}
        rows.append({"provider": provider, "model": model, **dollars})
    return rows


_PICOUSD_PER_DOLLAR_PER_MTOK = 1_000_000
_LIMIT_FIELDS = ("models", "rpm", "tpm", "input_tpm", "output_tpm", "rpd", "tpd", "concurrency", "kind", "burst")


@contextmanager
def _with_simulated_providers(options: ServeOptions) -> Iterator[ServeOptions]:
    """The options, over simulated providers and a configuration that names them."""
    with running_simulator() as url, tempfile.TemporaryDirectory(prefix="apikeyrouter-run-") as directory:
        path = Path(directory) / "simulated.yaml"
        path.write_text(jsonlib.dumps(router_config_for(load_config(None), url), indent=2))
        yield replace(options, config=str(path))


def _teller(plan: _Plan, *, json: bool) -> Any:
    def tell(event: str, facts: Mapping[str, Any]) -> None:
        if event == "listening":
            typer.echo(_as_json(plan, facts) if json else _as_text(plan, facts))
        elif event == "worker_restarted":
            typer.echo(f"worker {facts['pid']} ended ({facts['exit_code']}); its place is taken again", err=True)

    return tell


def _as_json(plan: _Plan, facts: Mapping[str, Any]) -> str:
    return jsonlib.dumps(
        {
            **facts,
            "event": "listening",
            "management_key": plan.management_key if plan.generated else None,
            "simulated": plan.simulated,
            "curl": _fill(_CURLS, plan, facts),
            "python": _fill(_SDKS, plan, facts),
        }
    )


def _as_text(plan: _Plan, facts: Mapping[str, Any]) -> str:
    source = (
        "No provider keys in the environment or in .env: the providers are simulated, their answers are made up."
        if plan.simulated
        else "Provider keys come from the environment, .env or the configuration file."
    )
    management = (
        f"Management key, made for this run: {plan.management_key}\n  curl -s {facts['url']}/api/v1/keys "
        f"-H 'X-API-Key: {plan.management_key}'"
        if plan.generated
        else "Management key: the one in MANAGEMENT_API_KEY."
    )
    return "\n\n".join(
        [
            one_line(facts),
            source,
            "Try it:\n\n" + _fill(_CURLS, plan, facts),
            "Or with an SDK:\n\n" + _fill(_SDKS, plan, facts),
            management,
            "Ctrl-C stops it.",
        ]
    )


def _fill(templates: Mapping[str, str], plan: _Plan, facts: Mapping[str, Any]) -> str:
    return templates[plan.provider].format(url=facts["url"], model=MODELS[plan.provider])
