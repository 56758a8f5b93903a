"""Options and policies for tests, and a reading of the law that shares no code with what is tested."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from apikeyrouter.domain.components.policy_constraints import Constraints, compile_constraints
from apikeyrouter.domain.components.policy_rules import read_policy
from apikeyrouter.domain.components.policy_statements import Statement, made_of
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.policy import Policy

NOW = 1_800_000_000.0
PROVIDERS, KEYS, REGIONS, TIERS = ("p0", "p1"), ("k0", "k1", "k2", "k3"), ("eu", "us"), ("pro", "free")
RANKS = ("default", "global", "provider", "model", "key", "team", "client")
MATTERS = {"providers": PROVIDERS, "keys": KEYS, "regions": REGIONS, "tiers": TIERS, "models": ("m", "n")}


def option(number: int, *, region: str = "eu", tier: str = "pro", rank: int = 0, model: str = "m") -> Option:
    """A way to serve model m; even keys are of provider p0."""
    metadata = {"region": region, "tier": tier}
    key: Any = SimpleNamespace(
        id=f"k{number}", metadata=metadata, weight=1.0, state=KeyState.Available, quota_group=f"g{number}"
    )
    provider: Any = SimpleNamespace(id=PROVIDERS[number % 2], wire=None)
    lanes = (f"k:k{number}", f"g:g{number}:m", f"p:{provider.id}")
    return Option(key=key, provider=provider, model=model, rank=rank, lanes=lanes, scopes=(), hard=False, price=None)


OPTIONS = [option(0), option(1, region="us"), option(2, tier="free"), option(3, region="us", tier="free")]


def statements_of(policies: Iterable[Policy]) -> list[Statement]:
    """What the policies say, in the order in which they come."""
    return [one for policy in policies if policy.enabled for one in made_of(policy, read_policy(policy))]


def constraints_of(policies: Iterable[Policy], *, now: float = NOW) -> Constraints:
    """All of them as what applies to one request."""
    statements = statements_of(policies)
    return compile_constraints(statements, preferring=statements, now=now)


def allowed_by(constraints: Constraints) -> set[str]:
    """The keys that are left."""
    return {one.key.id for one in OPTIONS if not constraints.verdict(one, "m").refused}


def facts_of(one: Option) -> dict[str, str]:
    """What an option is in every matter."""
    return {
        "providers": one.provider.id, "keys": one.key.id, "models": "m", "regions": one.key.metadata["region"],
        "tiers": one.key.metadata["tier"],
    }  # fmt: skip


def concerns(policy: Policy, one: Option) -> bool:
    """Whether a policy's scope is about this option."""
    about = {"provider": one.provider.id, "model": "m", "key": one.key.id}
    return about.get(policy.scope.value, policy.scope_id) == policy.scope_id


def speaks_against(rules: Mapping[str, Any], matter: str, one: Option) -> bool:
    """Whether one mapping of rules, alone, forbids an option in a matter."""
    name = facts_of(one)[matter]
    allowed = rules.get(f"allowed_{matter}")
    return name in rules.get(f"denied_{matter}", ()) or (allowed is not None and name not in allowed)


def precedence(policy: Policy) -> tuple[int, int, str]:
    """Ascending from what prevails."""
    return -RANKS.index(policy.scope.value), -policy.priority, policy.id


def lawful(policies: Iterable[Policy]) -> set[str]:
    """The keys that may serve, by the law read word for word."""
    found = sorted(policies, key=precedence)
    left = set()
    for one in OPTIONS:
        about = [policy for policy in found if concerns(policy, one) and policy.enforcement.value != "shadow"]
        if not any(_forbids(policy, about, one) for policy in about):
            left.add(one.key.id)
    return left


def _forbids(policy: Policy, about: list[Policy], one: Option) -> bool:
    for matter in MATTERS:
        speaking = [other for other in about if _speaks(other, matter)]
        if policy not in speaking:
            continue
        if policy.enforcement.value == "soft" and speaking[0] is not policy:
            continue  # a narrower one decides the matter
        if any(speaks_against(rules, matter, one) for rules in policy.rule_list):
            return True
    return False


def _speaks(policy: Policy, matter: str) -> bool:
    return any(f"allowed_{matter}" in rules or f"denied_{matter}" in rules for rules in policy.rule_list)


def _rules() -> st.SearchStrategy[dict[str, Any]]:
    lists = {
        f"{verb}_{matter}": st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
        for matter, names in MATTERS.items()
        for verb in ("allowed", "denied")
    }
    return st.fixed_dictionaries({}, optional=lists)


@st.composite
def policies(draw: st.DrawFn, *, count: int = 5) -> list[Policy]:
    """Some policies with ids of their own."""
    made = []
    for number in range(draw(st.integers(0, count))):
        scope = draw(st.sampled_from(RANKS))
        targets = {"provider": PROVIDERS, "key": KEYS, "model": ("m", "n"), "team": ("t",), "client": ("c",)}
        made.append(
            Policy(
                id=f"x{number}", name="x", scope=scope, rules=draw(st.lists(_rules(), min_size=1, max_size=2)),
                scope_id=draw(st.sampled_from(targets[scope])) if scope in targets else None,
                enforcement=draw(st.sampled_from(("hard", "soft", "shadow"))), priority=draw(st.integers(-1, 1)),
            )
        )  # fmt: skip
    return made
