"""How many tokens a request will take: the expected number, learned from answers, and the bound, which is never passed.

Expected: bytes of decoded text ÷ 4 (`providers.md` §4.2: −63 % … +88 % by kind of text), a few tokens a message, a flat
number per image, times a ratio learned per (provider, model) and kind of text. Bound (law 7): one token is at least one
byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from apikeyrouter.domain.components.text_kinds import Kind, kind_of
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.usage import Usage

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""Control tokens of one chat message (role and separators), OpenAI cookbook; K."""

REQUEST_TOKENS = 3
MEDIA_TOKENS = 1000
"""Expected tokens of one image or sound, before learning (`providers.md` §4.2)."""

OUTPUT_TOKENS = 400
"""Expected output per choice of a model never seen."""

RATIO_MIN = 0.25
RATIO_MAX = 8.0
"""The learned ratio's range. Text alone needs 0.53 (Russian) … 2.7 (base64); images of models that count tiles dearly
(gpt-4o-mini: 2,833 and more each) need the rest. Beyond it lies misreporting, which one answer must not spread."""

WEIGHT_MAX = 50.0
"""Answers the memory is worth: each new one counts at least 1/50."""

MODELS_MAX = 2048
"""Models remembered; the one learned longest ago goes first."""

BOUND_MESSAGE_TOKENS = 16
BOUND_REQUEST_TOKENS = 64
"""Allowances on top of bytes, far above any provider's framing; a message's JSON scaffold covers it already."""

COST_RATIO_MIN = 0.01
COST_RATIO_MAX = 100.0
COST_SHARE = 0.3
"""How far one reconciled request moves the ratio of costs."""

EXPORT_VERSION = 2


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens of one request. `bound_*` None: no bound exists (a file id, no token cap).

    `base_tokens` is the expected input before the learned ratio, `kind` the kind of text; hand both back to `learn`.
    """

    input_tokens: int
    output_tokens: int
    bound_input: int | None
    bound_output: int | None
    base_tokens: int
    kind: Kind = Kind.PROSE


class _Learned:
    """What is known of a model: its usual output, and per kind of text how much smaller than expected its input is.

    The inverse ratio is what is averaged: the harmonic mean of ratios is nearest to them all in relative terms.
    """

    __slots__ = ("inverse", "output", "weight", "weights")

    def __init__(self) -> None:
        self.output = float(OUTPUT_TOKENS)
        self.weight = 0.0
        self.inverse = [1.0] * len(Kind)
        self.weights = [0.0] * len(Kind)


_UNSEEN = _Learned()


class TokenEstimator:
    """Estimates and learns, per (provider, model). Pure: state is exported and merged by whoever keeps it."""

    def __init__(self, *, models_max: int = MODELS_MAX) -> None:
        self._models_max = models_max
        self._learned: dict[tuple[str, str], _Learned] = {}
        self.cost_ratios: dict[tuple[str, str], float] = {}
        """What requests really cost, in parts of what the price list says; only where somebody reconciled them."""

    def estimate(
        self, provider_id: str, model: str, parsed: ParsedRequest, *, token_cap: int | None = None
    ) -> TokenEstimate:
        """Tokens of `parsed` at this model. `token_cap`: the cap per choice that is sent, if not the client's."""
        if parsed.stated is not None:
            return TokenEstimate(*parsed.stated, base_tokens=0)
        learned = self._learned.get((provider_id, model), _UNSEEN)
        kind, counted = kind_of(parsed)
        base = base_tokens(parsed) if counted == 1.0 else base_tokens(parsed, counted)
        cap = parsed.max_output_tokens if token_cap is None else token_cap
        output = int(learned.output) + 1
        if cap is not None and output > cap:
            output = cap
        return TokenEstimate(
            int(base / learned.inverse[kind]) + 1,
            output * parsed.choices,
            bound_input(parsed),
            None if cap is None else bound_output(parsed, cap),
            base,
            kind,
        )

    def confidence(self, provider_id: str, model: str) -> float:
        """How far an estimate for this model can be trusted, 0 … 1: by how many answers it was learned from."""
        learned = self._learned.get((provider_id, model), _UNSEEN)
        return (learned.weight + 1) / (learned.weight + 4)

    def learn(
        self, provider_id: str, model: str, *, base_tokens: int, choices: int, usage: Usage, kind: Kind = Kind.PROSE
    ) -> None:
        """Take an answer into account. What is itself an estimate, or counts no input, teaches nothing."""
        if usage.estimated or usage.input_tokens <= 0 or base_tokens <= 0:
            return
        key = (provider_id, model)
        learned = self._learned.pop(key, None) or _Learned()
        self._learned[key] = learned
        if len(self._learned) > self._models_max:
            del self._learned[next(iter(self._learned))]
        weight = learned.weights[kind] = min(learned.weights[kind] + 1.0, WEIGHT_MAX)
        inverse = min(max(base_tokens / usage.input_tokens, 1 / RATIO_MAX), 1 / RATIO_MIN)
        learned.inverse[kind] += (inverse - learned.inverse[kind]) / weight
        learned.weight = min(learned.weight + 1.0, WEIGHT_MAX)
        learned.output += (usage.output_tokens / max(choices, 1) - learned.output) / learned.weight

    def learn_cost(self, provider_id: str, model: str, *, estimated: int, actual: int) -> None:
        """Take into account what a request really cost, in the same unit as what was estimated. Bounds stay."""
        if estimated <= 0:
            return
        key = (provider_id, model)
        if key not in self.cost_ratios and len(self.cost_ratios) >= self._models_max:
            del self.cost_ratios[next(iter(self.cost_ratios))]
        known = self.cost_ratios.get(key, 1.0)
        seen = min(max(actual / estimated * known, COST_RATIO_MIN), COST_RATIO_MAX)
        self.cost_ratios[key] = known + (seen - known) * COST_SHARE

    def export(self) -> dict[str, object]:
        """What was learned, as plain JSON values."""
        rows = [
            [p, m, round(x.output, 1), x.weight, [round(i, 4) for i in x.inverse], x.weights[:]]
            for (p, m), x in self._learned.items()
        ]
        costs = [[provider, model, round(ratio, 4)] for (provider, model), ratio in self.cost_ratios.items()]
        return {"version": EXPORT_VERSION, "models": rows, "costs": costs}

    def merge(self, state: Mapping[str, object]) -> None:
        """Take in what another worker, or an earlier life, has learned; merging the same state again changes little.

        Rows that are not what `export` writes are skipped: the state comes from outside.
        """
        if state.get("version") != EXPORT_VERSION:
            return
        for name, take in (("models", self._merge_row), ("costs", self._merge_cost)):
            rows = state.get(name)
            for row in rows[: self._models_max] if isinstance(rows, list) else ():
                take(row)

    def _merge_row(self, row: object) -> None:
        if not isinstance(row, list) or len(row) != 6:
            return
        provider_id, model, output, weight, inverse, weights = row
        if not (isinstance(provider_id, str) and isinstance(model, str)):
            return
        if not (_numbers([output, weight]) and _numbers(inverse) and _numbers(weights)) or weight == 0:
            return
        if len(inverse) != len(Kind) or len(weights) != len(Kind):
            return
        mine = self._learned.get((provider_id, model))
        if mine is None:
            if len(self._learned) >= self._models_max:
                return
            mine = self._learned[(provider_id, model)] = _Learned()
        mine.output, mine.weight = _merged(mine.output, mine.weight, output, weight)
        for kind in Kind:
            told = min(max(inverse[kind], 1 / RATIO_MAX), 1 / RATIO_MIN)
            mine.inverse[kind], mine.weights[kind] = _merged(
                mine.inverse[kind], mine.weights[kind], told, weights[kind]
            )

    def _merge_cost(self, row: object) -> None:
        if not isinstance(row, list) or len(row) != 3:
            return
        provider_id, model, ratio = row
        if not (isinstance(provider_id, str) and isinstance(model, str) and isinstance(ratio, int | float)):
            return
        key = (provider_id, model)
        if COST_RATIO_MIN <= ratio <= COST_RATIO_MAX and (
            key in self.cost_ratios or len(self.cost_ratios) < self._models_max
        ):
            self.cost_ratios[key] = (self.cost_ratios.get(key, ratio) + ratio) / 2


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(n, int | float) and 0 <= n < 1e12 for n in values)


def _merged(mine: float, my_weight: float, other: float, weight: float) -> tuple[float, float]:
    """Two averages as one; its weight is the larger one, for both may know the same answers."""
    weight = min(float(weight), WEIGHT_MAX)
    if weight == 0:
        return mine, my_weight
    return mine + (other - mine) * weight / (my_weight + weight), max(my_weight, weight)


def base_tokens(parsed: ParsedRequest, counted: float = 1.0) -> int:
    """Expected input before learning; `counted`: the part of the text's bytes that counts."""
    media = parsed.media * MEDIA_TOKENS
    return (
        int(parsed.text_bytes * counted) // BYTES_PER_TOKEN + parsed.messages * MESSAGE_TOKENS + REQUEST_TOKENS + media
    )


def bound_input(parsed: ParsedRequest) -> int | None:
    """Input tokens that cannot be exceeded; None when there is no such number."""
    if parsed.unbounded:
        return None
    overhead = parsed.messages * BOUND_MESSAGE_TOKENS + BOUND_REQUEST_TOKENS
    return parsed.input_bytes + parsed.extra_tokens + overhead


def bound_output(parsed: ParsedRequest, token_cap: int) -> int:
    """Output tokens that cannot be exceeded under a cap per choice."""
    return (token_cap + parsed.extra_output_tokens) * parsed.choices
