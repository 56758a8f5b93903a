"""`apikeyrouter demo`: live traffic over simulated providers, and what came of it.

`plan.py` says who has which limits, `stage.py` starts and stops the processes, `traffic.py` is the client process,
`table.py` draws, `figures.py` closes the books.
"""

from apikeyrouter.commands.demo.show import run

__all__ = ["run"]
