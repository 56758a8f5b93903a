"""The operator's page: a client of the management API, in a process of its own.

`management` asks the API, `sessions` and `gate` let operators in, `shown` turns answers into what is shown (pure),
`pages` puts that on the screen and takes actions. Nothing here knows the router's inside.
"""
