"""What a request would cost, asked beforehand: the same numbers that its admission would hold."""

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.accounting import UNPRICED
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.serving.admission import Admissions
from apikeyrouter.serving.requests import call_of, parsed_for


class Quotes:
    """Answers `CostController.estimate_request_cost`."""

    def __init__(self, catalogue: Catalogue, admissions: Admissions, estimator: TokenEstimator) -> None:
        self._catalogue, self._admissions, self._estimator = catalogue, admissions, estimator

    async def __call__(self, intent: RequestIntent, provider_id: str | None, key_id: str | None) -> CostEstimate | None:
        """The estimate for a key, else for the cheapest option there is; None: no price is known.

        Raises:
            InvalidRequestError: nothing there serves the model, or no adapter can say the request.
        """
        call = call_of(intent, None, stream=False)
        call.provider_id = provider_id or call.provider_id
        options = self._options(call, key_id)
        quoted = [self._estimate(call, option) for option in options]
        known = [estimate for estimate in quoted if estimate is not None]
        if known:
            return min(known, key=lambda estimate: estimate.amount)
        told: CostEstimate | None = await options[0].provider.adapter.estimate_cost(intent)
        return told

    def _options(self, call: Call, key_id: str | None) -> list[Option]:
        """One option of each price: those of a key, or all."""
        if key_id is not None and key_id not in self._catalogue.keys:
            raise InvalidRequestError(f"no key {key_id!r}", field="key_id")
        found = self._catalogue.pool(call.model, call.provider_id, call.dialect).options
        named = {option.rate: option for option in found if key_id is None or option.key.id == key_id}
        if not named:
            raise InvalidRequestError(f"key {key_id!r} does not serve model {call.model!r}", field="key_id")
        return list(named.values())

    def _estimate(self, call: Call, option: Option) -> CostEstimate | None:
        charge, _ = self._admissions.offer(call, option, parsed_for(call))
        if charge.expected_nanousd == UNPRICED:
            return None
        return CostEstimate(
            amount=dollars(charge.expected_nanousd), input_tokens=charge.input_tokens,
            output_tokens=charge.output_tokens,
            bound=None if charge.bound_nanousd == UNPRICED else dollars(charge.bound_nanousd),
            confidence=self._estimator.confidence(option.provider.id, option.model),
            method=f"price of {option.model} at {option.provider.id}",
        )  # fmt: skip
