"""How many tokens the parts of a text take at one model, learned from answers: linear least squares. Pure.

What is made small is the *relative* error, of the request that was told and of all before, the older the less. Until a
model has answered, and where its answers say nothing, the weights are those that open tokenisers have (`PRIOR`).
"""

from collections.abc import Sequence

from apikeyrouter.domain.components.text_kinds import PARTS, Kind

__all__ = ["MOMENTS", "PRIOR", "TokenWeights"]

WEIGHT_MAX = 200.0
"""Answers the memory is worth: each new one counts at least 1/200."""
PLENTY, STRIDE = 64.0, 4
"""Once it knows so many answers it takes in only one of so many; once it knows all that it can keep, one of that many
times as many."""
REVISED_AT = 0.125
"""New answers, as a share of those known, after which the weights are worked out anew."""
NOISE_VARIANCE = 0.005
"""Of the relative error that no weights explain (7 %)."""
PRIOR: tuple[tuple[float, ...], ...] = (
    (0.9, 0.27, 0.05, 0.80, 0.50, -1.50, -0.25),  # prose
    (0.9, 0.17, 0.10, 0.80, 0.60, -0.45, -0.10),  # code
    (1.0, 0.48, 0.30, 1.10, -1.10, 2.10, -2.60),  # dense
    (1.0, 0.50, 0.10, 1.90, -1.20, 2.00, -2.40),  # quoted
    (0.9, 0.14, 0.20, 2.00, 0.80, -1.10, 0.00),  # two bytes
    (0.9, 0.24, 0.05, 0.95, 0.80, -1.50, 0.00),  # three bytes
    (1.0, 0.25, 0.00, 0.00, 0.00, 0.00, 0.00),  # media
)
"""Tokens per part, by kind: least squares over texts in five languages, code in four and base64, as o200k_base,
cl100k_base and the tokenisers of Llama 3 and Qwen 3 count them (measured here, 2026-11)."""
PRIOR_SPREAD = (1.0, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5)
"""How far (standard deviations) a model's weights may be from the prior, before its answers say so."""
_TRIANGLE = tuple((row, column) for row in range(PARTS) for column in range(row + 1))
MOMENTS = len(_TRIANGLE) + PARTS
"""Numbers that the weights are worked out from."""


class TokenWeights:
    """The weights of one model and kind of text. `answers`: how many it was learned from, at most WEIGHT_MAX."""

    __slots__ = ("_prior", "_skipped", "_unseen", "answers", "moments", "weights")

    def __init__(self, kind: Kind) -> None:
        self.answers = 0.0
        self.moments = [0.0] * MOMENTS
        """Averages over answers, of parts per token: products of any two of them, then each of them."""
        self.weights = self._prior = PRIOR[kind]
        self._unseen = 0.0
        self._skipped = 0

    def tokens(self, parts: Sequence[float]) -> float:
        """The expected tokens of a text."""
        w0, w1, w2, w3, w4, w5, w6 = self.weights
        p0, p1, p2, p3, p4, p5, p6 = parts
        return w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3 + w4 * p4 + w5 * p5 + w6 * p6

    def learn(self, parts: Sequence[float], tokens: float) -> None:
        """A text had so many tokens (> 0)."""
        if self.answers >= PLENTY:
            self._skipped += 1
            if self._skipped < (STRIDE if self.answers < WEIGHT_MAX else STRIDE * STRIDE):
                return
            self._skipped = 0
        self.answers = min(self.answers + 1.0, WEIGHT_MAX)
        share, told = 1.0 / self.answers, [part / tokens for part in parts]
        seen = [told[row] * told[column] for row, column in _TRIANGLE] + told
        self.moments = [mean + (new - mean) * share for mean, new in zip(self.moments, seen, strict=True)]
        self._unseen += 1.0
        if self._unseen >= self.answers * REVISED_AT:
            self._revise()

    def merge(self, answers: float, moments: Sequence[float]) -> None:
        """What another has learned. The sum is worth as much as the better known, for both may know the same."""
        answers = min(answers, WEIGHT_MAX)
        if answers <= 0:
            return
        share = answers / (self.answers + answers)
        self.moments = [mine + (other - mine) * share for mine, other in zip(self.moments, moments, strict=True)]
        self.answers = max(self.answers, answers)
        self._revise()

    def _revise(self) -> None:
        """Work the weights out from what was learned: the likeliest, given the prior."""
        self._unseen = 0.0
        matrix = [[0.0] * (PARTS + 1) for _ in range(PARTS)]
        for (row, column), moment in zip(_TRIANGLE, self.moments, strict=False):
            matrix[row][column] = matrix[column][row] = moment
        noise = NOISE_VARIANCE / self.answers
        for place, (weight, spread) in enumerate(zip(self._prior, PRIOR_SPREAD, strict=True)):
            trust = noise / spread**2
            matrix[place][place] += trust
            matrix[place][PARTS] = self.moments[len(_TRIANGLE) + place] + trust * weight
        self.weights = tuple(_solved(matrix))


def _solved(matrix: list[list[float]]) -> list[float]:
    """The solution of as many linear equations, positive definite: each row ends with its right side."""
    for place, pivot in enumerate(matrix):
        for row in matrix[place + 1 :]:
            factor = row[place] / pivot[place]
            if factor:
                for column in range(place, PARTS + 1):
                    row[column] -= factor * pivot[column]
    found = [0.0] * PARTS
    for place in range(PARTS - 1, -1, -1):
        row = matrix[place]
        known = sum(row[column] * found[column] for column in range(place + 1, PARTS))
        found[place] = (row[PARTS] - known) / row[place]
    return found
