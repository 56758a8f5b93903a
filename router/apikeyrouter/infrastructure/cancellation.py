"""Cancellations that libraries swallow.

What waits with `asyncio.wait_for` may, up to Python 3.11, lose a cancellation that comes with the result. An endless
loop must then notice by itself, or the program never ends.
"""

import asyncio

__all__ = ["stop_if_cancelled"]


def stop_if_cancelled() -> None:
    """To be called in every round of an endless loop. Raises CancelledError where one was asked for and got lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
