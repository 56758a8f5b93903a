"""What staying with a prompt's cache saves, in the dollars that simulated providers bill."""

import asyncio
import base64
import secrets
from decimal import Decimal

from apikeyrouter import ApiKeyRouter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section

__all__ = ["measure_stickiness"]

MODEL = "simulated-model"
INPUT_USD, CACHED_USD, OUTPUT_USD = "1.25", "0.125", "10"
ORGANISATIONS = 4
CONVERSATIONS, TURNS = 15, 8
"""No multiple of the number of keys, or turns alone would keep conversations apart."""
PROMPT = "You are a patient teacher of geology, and you never lose your temper. " * 120
"""Some two thousand tokens."""
WAYS = (
    ("fairness, conversations not named", "fairness", False),
    ("fairness, conversations named", "fairness", True),
    ("cost, conversations not named", "cost", False),
)


def measure_stickiness() -> Section:
    """The same conversations in several ways. Errors: ProofError when books and bill differ."""
    section = Section(title="Prompt caches: what the providers bill, simulated")
    bills: list[int] = []
    for name, objective, named in WAYS:
        billed, cached, tokens = asyncio.run(_billed(objective, named=named))
        bills.append(billed)
        saved = 1 - billed / bills[0]
        section.figures.append(
            Figure(
                name=name,
                measured=f"${billed / 1e9:.4f}, {saved:.0%} less; {cached / tokens:.0%} of the input was cached",
                budget="" if len(bills) == 1 else "less", holds=None if len(bills) == 1 else billed < bills[0],
            )
        )  # fmt: skip
    section.notes.append(
        f"{CONVERSATIONS} conversations of {TURNS} turns, in turn, on a key of each of {ORGANISATIONS} organisations;"
        f" ${INPUT_USD} a million tokens, ${CACHED_USD} cached, ${OUTPUT_USD} of output; books equal bills"
    )
    return section


async def _billed(objective: str, *, named: bool) -> tuple[int, int, int]:
    """Nano-dollars billed, input tokens read from caches, and all of them."""
    price = {"input": INPUT_USD, "output": OUTPUT_USD, "cached_input": CACHED_USD}
    organisations = [
        {"id": f"org-{n}", "keys": [f"sk-sim-cache-{n}"], "output_tokens": 20, "cache": True, "prices": {MODEL: price}}
        for n in range(ORGANISATIONS)
    ]
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    async with (
        SimulatorProcess({"organisations": organisations}) as simulator,
        ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": key}) as router,
    ):
        await router.register_provider("simulated", OpenAIAdapter(simulator.openai_url))
        router.catalogue.prices.add(
            "simulated", MODEL, input=Decimal(INPUT_USD), output=Decimal(OUTPUT_USD), cached_input=Decimal(CACHED_USD)
        )
        for number in range(ORGANISATIONS):
            await router.register_key(f"sk-sim-cache-{number}", "simulated", {"quota_group": f"org-{number}"})
        booked = Decimal(0)
        for turn in range(TURNS):
            for conversation in range(CONVERSATIONS):
                system = {"role": "system", "content": f"{conversation}: {PROMPT}"}
                intent = {
                    "model": MODEL, "messages": [system, {"role": "user", "content": f"question {turn}"}],
                    "tags": {"session": str(conversation)} if named else {},
                }  # fmt: skip
                answer = await router.route(intent, objective=objective)
                assert answer.cost is not None
                booked += answer.cost.amount
        total = (await simulator.report())["total"]
        if booked * 10**9 != total["cost_nanousd"]:
            raise ProofError(f"the router booked ${booked}, the providers billed {total['cost_nanousd']} nano-dollars")
        return total["cost_nanousd"], total["cached_tokens"], total["input_tokens"]
