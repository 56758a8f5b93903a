"""How many tokens a request will take: the expected number, learned from answers, and the bound, which is never passed.

Expected: what the text is made of, times weights learned per (provider, model) and kind of text. Bound (law 7): one
token is at least one byte.
"""

from collections.abc import Mapping

import msgspec

from apikeyrouter.domain.components.text_kinds import PARTS, Kind, Shape, shape_of
from apikeyrouter.domain.components.token_weights import MOMENTS, TokenWeights
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.usage import Usage

BYTES_PER_TOKEN = 4
OUTPUT_TOKENS = 400
"""Expected output per choice of a model never seen."""

RATIO_MIN = 0.25
RATIO_MAX = 8.0
"""The range of what is learned, in parts of what any text of that length has: four bytes a token, an image 1,000. Text
alone needs 0.53 (Russian) … 2.7 (base64); images of models that count tiles dearly
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

EXPORT_VERSION = 3


class TokenEstimate(msgspec.Struct, frozen=True):
    """Tokens of one request. `bound_*` None: no bound exists (a file id, no token cap).

    `shape` is what the expected input was made of, None where it was told; hand it back to `learn`.
    """

    input_tokens: int
    output_tokens: int
    bound_input: int | None
    bound_output: int | None
    shape: Shape | None = None


class _Learned:
    """What is known of a model: its usual output, and its weights for each kind of text that it has answered."""

    __slots__ = ("kinds", "output", "weight")

    def __init__(self) -> None:
        self.output = float(OUTPUT_TOKENS)
        self.weight = 0.0
        self.kinds: dict[Kind, TokenWeights] = {}


_UNSEEN = _Learned()
_NO_SHAPE = Shape(Kind.PROSE, (0.0,) * PARTS)
_KINDS = frozenset(map(int, Kind))
_PRIOR = {kind: TokenWeights(kind) for kind in Kind}


class TokenEstimator:
    """Estimates and learns, per (provider, model). Pure: state is exported and merged by whoever keeps it."""

    def __init__(self, *, models_max: int = MODELS_MAX) -> None:
        self._models_max = models_max
        self._learned: dict[tuple[str, str], _Learned] = {}
        self._seen: tuple[ParsedRequest | None, Shape] = (None, _NO_SHAPE)
        self.cost_ratios: dict[tuple[str, str], float] = {}
        """What requests really cost, in parts of what the price list says; only where somebody reconciled them."""

    def estimate(
        self,
        provider_id: str,
        model: str,
        parsed: ParsedRequest,
        *,
        token_cap: int | None = None,
        context_tokens: int | None = None,
    ) -> TokenEstimate:
        """Tokens of `parsed` at this model. `token_cap`: the cap per choice that is sent, if not the client's;
        `context_tokens`: the longest input that the model takes, None: not known."""
        if parsed.stated is not None:
            return TokenEstimate(*parsed.stated)
        learned = self._learned.get((provider_id, model), _UNSEEN)
        seen, shape = self._seen
        if seen is not parsed:
            shape = shape_of(parsed)
            self._seen = (parsed, shape)
        expected = (learned.kinds.get(shape.kind) or _PRIOR[shape.kind]).tokens(shape.parts)
        plain = _plain(shape)
        cap = parsed.max_output_tokens if token_cap is None else token_cap
        output = int(learned.output) + 1
        if cap is not None and output > cap:
            output = cap
        return TokenEstimate(
            int(_within(expected, plain)) + 1,
            output * parsed.choices,
            bound_input(parsed, context_tokens),
            None if cap is None else bound_output(parsed, cap),
            shape,
        )

    def confidence(self, provider_id: str, model: str) -> float:
        """How far an estimate for this model can be trusted, 0 … 1: by how many answers it was learned from."""
        learned = self._learned.get((provider_id, model), _UNSEEN)
        return (learned.weight + 1) / (learned.weight + 4)

    def learn(self, provider_id: str, model: str, *, shape: Shape | None, choices: int, usage: Usage) -> None:
        """Take an answer into account. What is itself an estimate, or counts no input, teaches nothing."""
        if usage.estimated or usage.input_tokens <= 0 or shape is None:
            return
        plain = _plain(shape)
        if plain <= 0:
            return
        key = (provider_id, model)
        learned = self._learned.pop(key, None) or _Learned()
        self._learned[key] = learned
        if len(self._learned) > self._models_max:
            del self._learned[next(iter(self._learned))]
        weights = learned.kinds.get(shape.kind)
        if weights is None:
            weights = learned.kinds[shape.kind] = TokenWeights(shape.kind)
        weights.learn(shape.parts, _within(usage.input_tokens, plain))
        learned.weight = learned.weight + 1.0 if learned.weight < WEIGHT_MAX else WEIGHT_MAX
        learned.output += (usage.output_tokens / (choices or 1) - learned.output) / learned.weight

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
            [provider, model, round(known.output, 1), known.weight,
             [[int(kind), weights.answers, *weights.moments] for kind, weights in known.kinds.items()]]
            for (provider, model), known in self._learned.items()
        ]  # fmt: skip
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
        if not isinstance(row, list) or len(row) != 5:
            return
        provider_id, model, output, weight, kinds = row
        if not (isinstance(provider_id, str) and isinstance(model, str) and _numbers([output, weight])) or weight == 0:
            return
        if not isinstance(kinds, list) or not all(_is_kind(told) for told in kinds):
            return
        mine = self._learned.get((provider_id, model))
        if mine is None:
            if len(self._learned) >= self._models_max:
                return
            mine = self._learned[(provider_id, model)] = _Learned()
        mine.output, mine.weight = _merged(mine.output, mine.weight, output, weight)
        for number, answers, *moments in kinds:
            weights = mine.kinds.setdefault(Kind(number), TokenWeights(Kind(number)))
            weights.merge(answers, moments)

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


def _within(tokens: float, plain: float) -> float:
    """Tokens, no fewer and no more than can be believed of a text of which so many would be expected."""
    least, most = plain * RATIO_MIN, plain * RATIO_MAX
    return least if tokens < least else most if tokens > most else tokens


def _plain(shape: Shape) -> float:
    """What would be expected of any text of that length."""
    return shape.parts[0] + shape.parts[1] / BYTES_PER_TOKEN


def _is_kind(told: object) -> bool:
    return isinstance(told, list) and len(told) == 2 + MOMENTS and _numbers(told) and told[0] in _KINDS


def bound_input(parsed: ParsedRequest, context_tokens: int | None = None) -> int | None:
    """Input tokens that cannot be exceeded; None when there is no such number."""
    if parsed.unbounded:
        return context_tokens if parsed.within_context else None
    overhead = parsed.messages * BOUND_MESSAGE_TOKENS + BOUND_REQUEST_TOKENS
    return parsed.input_bytes + parsed.extra_tokens + overhead


def bound_output(parsed: ParsedRequest, token_cap: int) -> int:
    """Output tokens that cannot be exceeded under a cap per choice."""
    return (token_cap + parsed.extra_output_tokens) * parsed.choices
