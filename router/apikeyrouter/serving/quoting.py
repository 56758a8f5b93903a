"""What a request would cost, asked beforehand: the same numbers that its admission would hold."""

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.accounting import UNPRICED
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.serving.admission import Admissions
from apikeyrouter.serving.policing import Policing
from apikeyrouter.serving.requests import ask_costs, call_of, left_out, parsed_for


class Quotes:
    """Answers `CostController.estimate_request_cost`."""

    def __init__(
        self, catalogue: Catalogue, admissions: Admissions, estimator: TokenEstimator, policing: Policing
    ) -> None:
        self._catalogue, self._admissions, self._estimator = catalogue, admissions, estimator
        self._policing = policing

    async def __call__(self, intent: RequestIntent, provider_id: str | None, key_id: str | None) -> CostEstimate | None:
        """The estimate for a key, else for the cheapest option there is; None: no price is known.

        Raises:
            InvalidRequestError: nothing there serves the model, or no adapter can say the request.
        """
        call = call_of(intent, None, stream=False)
        call.provider_id = provider_id or call.provider_id
        pool, options = self._options(call, key_id)
        await ask_costs(call, pool)
        quoted = (self._estimate(call, pool, option) for option in options)
        return min((one for one in quoted if one is not None), key=lambda estimate: estimate.amount, default=None)

    def _options(self, call: Call, key_id: str | None) -> tuple[Pool, list[Option]]:
        """One option of each price: those of a key, or all that may serve."""
        if key_id is not None and key_id not in self._catalogue.keys:
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
        rules = self._policing.rules(call, relaxed=False)
        for constraints in dict.fromkeys((rules, None)):  # what policies refuse has a price all the same
            pool = self._catalogue.pool_of(call, constraints)
            barred = set(left_out(call, pool, parsed_for(call), {})) if pool.options else set()
            found = [option for option in pool.options if option not in barred]
            named = {option.rate: option for option in found if key_id is None or option.key.id == key_id}
            if named:
                return pool, list(named.values())
        raise InvalidRequestError(f"key {key_id!r} does not serve model {call.model!r}", field="key_id")

    def _estimate(self, call: Call, pool: Pool, option: Option) -> CostEstimate | None:
        charge = self._admissions.offer(call, pool, option, parsed_for(call))
        if charge.expected_nanousd == UNPRICED:
            return None
        return CostEstimate(
            amount=dollars(charge.expected_nanousd), input_tokens=charge.input_tokens,
            output_tokens=charge.output_tokens,
            bound=None if charge.bound_nanousd == UNPRICED else dollars(charge.bound_nanousd),
            confidence=self._estimator.confidence(option.provider.id, option.model),
            method=f"price of {option.model} at {option.provider.id}",
        )  # fmt: skip
