"""Which addresses belong to nobody's own network: where requests may go that somebody else's words send us on."""

import ipaddress

__all__ = ["AddressRefused", "is_public"]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""A gateway of the network makes IPv4 addresses of these (RFC 6052)."""


class AddressRefused(OSError):
    """A name stands for an address that must not be connected to."""


def is_public(host: str) -> bool:
    """Whether an address belongs to nobody's own network; names and anything unreadable do not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    found = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if address in _NAT64:
        found = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return bool(found.is_global and not found.is_multicast and not found.is_reserved)
