"""Which names can be said in the path of a URL. Those that cannot could be made, and never be taken back by name."""

from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["addressable"]

_BELOW = ("transitions", "deliveries")
"""What is read below a name: `keys/<id>/transitions`."""


def addressable(name: str) -> str:
    """The name. Slashes may be in it, but clients of HTTP take out of a path what is empty, `.` or `..` between them.

    Errors: InvalidRequestError.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequestError("must be printable, and between its slashes nothing may be empty, . or ..")
    if len(parts) > 1 and parts[-1] in _BELOW:
        raise InvalidRequestError(f"must not end with /{parts[-1]}, which is read below a name")
    return name
