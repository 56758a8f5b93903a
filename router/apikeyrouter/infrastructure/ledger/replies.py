"""Parts of replies, read."""

from apikeyrouter.domain.models.accounting import LIMIT_NAMES, Loss, Reason, RetryKind
from apikeyrouter.infrastructure.ledger.encoding import id_of
from apikeyrouter.infrastructure.ledger.engine import Reply

__all__ = ["loss_order", "losses_of", "text_of"]

_LIMIT_NAMES = ("", *LIMIT_NAMES)


def losses_of(reply: Reply, at: int) -> tuple[Loss, ...]:
    """Why each candidate lost: their count is at `at`."""
    rows = range(at + 1, at + 1 + 5 * reply[at], 5)
    return tuple(
        Loss(
            index=number, reason=Reason(reply[row]), where=id_of(text_of(reply[row + 1])),
            limit=_LIMIT_NAMES[reply[row + 2]], retry_at_us=reply[row + 3],
            retry_kind=RetryKind(reply[row + 4]),
        )
        for number, row in enumerate(rows)
    )  # fmt: skip


def loss_order(loss: Loss) -> tuple[bool, int, int]:
    """What ends first comes first."""
    return loss.retry_kind is RetryKind.NEVER, loss.retry_at_us, loss.index


def text_of(value: object) -> str:
    """A word, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
