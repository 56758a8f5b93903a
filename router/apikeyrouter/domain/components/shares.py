"""Clients' weights as the ledger takes them: whole numbers that stand to each other as the weights do. Pure."""

from collections.abc import Iterable

__all__ = ["Shares"]

SCALE_MAX = 1000
"""Weights are told apart to a thousandth; less than that counts as one."""
ERROR_MAX = 0.01


class Shares(dict[float, int]):
    """From a weight to its whole number: all weights times the smallest scale that brings each within 1 % of one.

    Whoever has no weight of its own has 1, and is scaled like the rest. `scale` is at most 1,000.
    """

    def __init__(self, weights: Iterable[float] = ()) -> None:
        super().__init__()
        known = {1.0, *weights}
        scales = (scale for scale in range(1, SCALE_MAX) if all(_is_near(weight * scale) for weight in known))
        self.scale = next(scales, SCALE_MAX)

    def __missing__(self, weight: float) -> int:
        whole = self[weight] = max(1, round(weight * self.scale))
        return whole


def _is_near(value: float) -> bool:
    return round(value) >= 1 and abs(value - round(value)) <= ERROR_MAX * value
