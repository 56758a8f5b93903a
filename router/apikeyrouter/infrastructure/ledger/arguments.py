"""What the scripts of one request are called with: checked here, in the order that their headers tell."""

from collections.abc import Sequence
from functools import lru_cache

from apikeyrouter.domain.models.accounting import (
    CANDIDATES_MAX,
    LANES_PER_CANDIDATE_MAX,
    SCOPES_PER_CANDIDATE_MAX,
    SHARED_SCOPES_MAX,
    Candidate,
    Charge,
    ReserveRequest,
    Settlement,
    Words,
    place_words,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.encoding import check_id
from apikeyrouter.infrastructure.ledger.engine import Argument

SETTLED_TOKENS_MAX = 2**31
_SHARED_KEPT = 1024


def reserve_args(request: ReserveRequest) -> list[Argument]:
    """What `reserve` is called with. Errors: LedgerConfigError."""
    candidates = request.candidates
    if not 1 <= len(candidates) <= CANDIDATES_MAX:
        raise LedgerConfigError(f"a reserve takes 1 to {CANDIDATES_MAX} candidates, got {len(candidates)}")
    if len(request.scopes) > SHARED_SCOPES_MAX:
        raise LedgerConfigError(f"at most {SHARED_SCOPES_MAX} shared scopes, got {len(request.scopes)}")
    charges: dict[int, int] = {}
    words: list[Argument] = []
    offers: list[Argument] = [len(candidates)]
    for candidate in candidates:
        number = charges.get(id(candidate.charge))
        if number is None:
            number = charges[id(candidate.charge)] = len(charges) + 1
            words.extend(charge_words(candidate.charge))
        placed = candidate.words or candidate_words(candidate)
        offers.append(placed if number == 1 else Words((*placed[:-1], number)))
    scopes = request.scopes
    if scopes:
        _check_shared(scopes, candidates)
    return [
        request.rid, request.config_version, request.lease_us, request.principal, request.weight, request.pool,
        len(scopes), *scopes, len(charges), *words, *offers,
    ]  # fmt: skip


def candidate_words(candidate: Candidate) -> Words:
    """Where a candidate is counted, under the first charge. Errors: LedgerConfigError."""
    if candidate.words is not None:
        return candidate.words
    lanes, scopes = candidate.lanes, candidate.scopes
    if not 1 <= len(lanes) <= LANES_PER_CANDIDATE_MAX or len(scopes) > SCOPES_PER_CANDIDATE_MAX:
        raise LedgerConfigError(
            f"a candidate has 1 to {LANES_PER_CANDIDATE_MAX} lanes and at most {SCOPES_PER_CANDIDATE_MAX} scopes"
        )
    _check_names(lanes, what="lane")
    _check_names(scopes, what="scope")
    return place_words(lanes, scopes)


def _check_shared(scopes: Sequence[str], candidates: Sequence[Candidate]) -> None:
    shared = _shared_scopes(scopes)
    for candidate in candidates:
        if candidate.scopes and not shared.isdisjoint(candidate.scopes):
            raise LedgerConfigError(f"a scope is named twice: {', '.join((*scopes, *candidate.scopes))}")


@lru_cache(_SHARED_KEPT)
def _shared_scopes(scopes: tuple[str, ...]) -> frozenset[str]:
    """The scopes that all candidates share, checked once for as long as requests come in with the same."""
    _check_names(scopes, what="scope")
    return frozenset(scopes)


def _check_names(names: Sequence[str], *, what: str) -> None:
    """Each lane and scope counts once for a request, and has a name that a record can hold."""
    for name in names:
        check_id(name, what=what)
    if len(set(names)) < len(names):
        raise LedgerConfigError(f"a {what} is named twice: {', '.join(names)}")


def charge_words(charge: Charge) -> tuple[Argument, ...]:
    """What a request takes, as the scripts read it."""
    metered = charge.metered_tokens
    if metered is None:
        metered = charge.input_tokens + charge.output_tokens
    return charge.input_tokens, charge.output_tokens, metered, charge.expected_nanousd, charge.bound_nanousd


def settle_args(settlement: Settlement) -> list[Argument]:
    """One settlement of a page. Errors: LedgerConfigError: a count of tokens that no provider tells."""
    tokens = (settlement.input_tokens, settlement.output_tokens)
    if min(tokens) < 0 or max(tokens) > SETTLED_TOKENS_MAX:
        raise LedgerConfigError(f"settlement of {settlement.rid.hex()}: token counts must be between 0 and 2^31")
    return [
        settlement.rid, settlement.input_tokens, settlement.output_tokens, settlement.cost_nanousd,
        int(settlement.outcome), settlement.failed_lanes, max(0, settlement.latency_us),
    ]  # fmt: skip
