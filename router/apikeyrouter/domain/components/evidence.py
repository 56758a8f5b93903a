"""What counts prove: a few bad outcomes prove little, none prove nothing."""

import math


def proven_share(bad: float, total: float) -> float:
    """The lower end of Wilson's interval at one standard deviation: 0 without bad ones, 0.5 after one of one."""
    if bad <= 0:
        return 0.0
    share = bad / total
    spread = math.sqrt(share * (1 - share) / total + 0.25 / (total * total))
    return max(0.0, (share + 0.5 / total - spread) / (1 + 1 / total))
