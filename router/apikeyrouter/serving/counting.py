"""How many tokens a request has, where its provider cannot be asked: what its admission would reckon with."""

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.serving.policing import Policing
from apikeyrouter.serving.requests import left_out, parsed_for


def expected_tokens(
    call: Call, facts: Facts, catalogue: Catalogue, estimator: TokenEstimator, policing: Policing
) -> int:
    """Input tokens at the provider that would be asked first, by what was learned of its model. Nothing is held.

    Raises:
        InvalidRequestError: no provider can be asked this.
        PolicyDeniedError: policies leave none.
    """
    rules = policing.rules(call, relaxed=True)
    pool = catalogue.pool_of(call, rules)
    if rules is not None and not pool.options:
        raise policing.denial(rules, pool, (), facts)
    parsed = parsed_for(call)
    mute = left_out(call, pool, parsed, {})
    samples = [one for one in pool.samples if one not in mute] or [one for one in pool.options if one not in mute]
    option = min(samples, key=lambda one: one.rank)
    told = parsed(option)[1]
    assert told is not None
    return estimator.estimate(option.provider.id, option.model, told).input_tokens
