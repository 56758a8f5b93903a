"""What the scripts of one request are called with: checked here, in the order that their headers tell."""

import struct
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from msgspec.structs import astuple

from apikeyrouter.domain.models.accounting import (
    CANDIDATES_MAX,
    SHARED_SCOPES_MAX,
    Alike,
    Candidate,
    Charge,
    ReserveRequest,
    Settlement,
    Words,
    check_names,
    place_words,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.encoding import scope_field
from apikeyrouter.infrastructure.ledger.engine import Argument

SETTLED_TOKENS_MAX = 2**31
_RID = b"r:"
_SHARED_KEPT = 1024
_SETTLEMENT, _SLAB_USE = struct.Struct("<6d"), struct.Struct("<9d")


def rid_field(rid: bytes) -> bytes:
    """The field that keeps a reservation."""
    return _RID + rid


def rid_of(field: bytes) -> bytes:
    """The id of the reservation that is kept in this field."""
    return field[len(_RID) :]


def reserve_args(request: ReserveRequest) -> list[Argument]:
    """What `reserve` is called with. Errors: LedgerConfigError."""
    candidates = request.candidates
    if not 1 <= len(candidates) <= CANDIDATES_MAX:
        raise LedgerConfigError(f"a reserve takes 1 to {CANDIDATES_MAX} candidates, got {len(candidates)}")
    return request_args(request, candidates, request.weight, request.principal)


def request_args(
    request: ReserveRequest, candidates: Sequence[Candidate], weight: int, principal: str
) -> list[Argument]:
    """What `reserve` and `reassert` are called with. Errors: LedgerConfigError."""
    scopes = request.scopes
    own: Iterable[tuple[str, ...]]
    if isinstance(candidates, Alike):
        places, charges = candidates.places, list(charge_numbers(candidates.charge))
        words, own, others = places.words[0], places.scopes, places.text
    else:
        words, own = candidate_words(candidates[0]), [candidate.scopes for candidate in candidates]
        charges, others = _others(candidates)
    shared = _shared(scopes, own) if scopes else ()
    numbers = [
        request.config_version, request.lease_us, weight, len(words.lanes), len(shared), len(words.scopes),
        request.calls,
    ]  # fmt: skip
    numbers += charges
    args: list[Argument] = [rid_field(request.rid), principal, b"", *words.lanes, *shared, *words.scopes]
    if others:
        args.append(others)
    args[2] = _packed(numbers)
    return args


def _shared(scopes: tuple[str, ...], own: Iterable[tuple[str, ...]]) -> tuple[bytes, ...]:
    """The fields of the shared scopes, none of which is a candidate's own. Errors: LedgerConfigError."""
    names, fields = _shared_scopes(scopes)
    for others in own:
        if not names.isdisjoint(others):
            raise LedgerConfigError(f"a scope is named twice: {', '.join((*scopes, *others))}")
    return fields


def _others(candidates: Sequence[Candidate]) -> tuple[list[int], bytes]:
    """The charges of candidates, the first's first and each once; and where all but the first are counted, as a text
    that says whose charge each has."""
    charge = candidates[0].charge
    charges, known = [*charge_numbers(charge)], {id(charge): 1}
    parts: list[bytes] = []
    for candidate in candidates[1:]:
        number = known.get(id(candidate.charge))
        if number is None:
            charges += charge_numbers(candidate.charge)
            number = known[id(candidate.charge)] = len(known) + 1
        parts.append(b"%d\n%b\n" % (number, candidate_words(candidate).text))
    return charges, b"".join(parts)


def candidate_words(candidate: Candidate) -> Words:
    """Where a candidate is counted, as it was made in advance, if that is of these lanes and scopes.

    Errors: LedgerConfigError.
    """
    words = candidate.words
    if words is not None and words.ids[0] is candidate.lanes and words.ids[1] is candidate.scopes:
        return words
    return place_words(candidate.lanes, candidate.scopes)


@lru_cache(_SHARED_KEPT)
def _shared_scopes(scopes: tuple[str, ...]) -> tuple[frozenset[str], tuple[bytes, ...]]:
    """The scopes that all candidates share, and their fields: made once for as long as requests come with the same."""
    if len(scopes) > SHARED_SCOPES_MAX:
        raise LedgerConfigError(f"at most {SHARED_SCOPES_MAX} shared scopes, got {len(scopes)}")
    check_names(scopes, what="scope")
    return frozenset(scopes), tuple(scope_field(scope).encode() for scope in scopes)


def charge_numbers(charge: Charge) -> tuple[int, int, int, int, int]:
    """What a request takes, as the scripts read it."""
    metered = charge.metered_tokens
    if metered is None:
        metered = charge.input_tokens + charge.output_tokens
    return charge.input_tokens, charge.output_tokens, metered, charge.expected_nanousd, charge.bound_nanousd


def settle_args(settlement: Settlement) -> tuple[bytes, bytes]:
    """One settlement of a page. Errors: LedgerConfigError: a count of tokens that no provider tells."""
    told, made, latency_us = settlement.input_tokens, settlement.output_tokens, settlement.latency_us
    if not (0 <= told <= SETTLED_TOKENS_MAX and 0 <= made <= SETTLED_TOKENS_MAX):
        raise LedgerConfigError(f"settlement of {settlement.rid.hex()}: token counts must be between 0 and 2^31")
    try:
        numbers = _SETTLEMENT.pack(
            told, made, settlement.cost_nanousd, settlement.outcome, settlement.failed_lanes,
            latency_us if latency_us > 0 else 0,
        )  # fmt: skip
        if settlement.slab is not None:
            numbers += _SLAB_USE.pack(*astuple(settlement.slab))
    except (OverflowError, struct.error) as exc:
        raise LedgerConfigError(f"settlement of {settlement.rid.hex()}: {exc}") from None
    return rid_field(settlement.rid), numbers


@cache
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


def _packed(numbers: Sequence[int]) -> bytes:
    """Integers as the scripts read them; those that a double does not hold exactly are refused there."""
    try:
        return _doubles(len(numbers)).pack(*numbers)
    except (OverflowError, struct.error) as exc:
        raise LedgerConfigError(f"a request of {numbers}: {exc}") from None
