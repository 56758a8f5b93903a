"""Small amounts are told as people write them."""

import json
import pickle
from decimal import Decimal

import pytest

from apikeyrouter.domain.models.budget import Budget, BudgetStatus, EnforcementMode
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars
from apikeyrouter.domain.models.money import Dollars, plainly
from apikeyrouter.domain.models.time_window import TimeWindow


@pytest.mark.parametrize("amount", [dollars(100), Dollars("1E-7"), CostEstimate(amount=Decimal("1E-7")).amount])
def test_a_small_amount_prints_in_full_however_it_is_printed(amount: Decimal) -> None:
    assert [str(amount), f"{amount}", f"${amount}", f"{amount:.9f}"] == [
        "0.0000001", "0.0000001", "$0.0000001", "0.000000100"
    ]  # fmt: skip
    assert repr(amount) == "Decimal('0.0000001')"
    assert amount == Decimal("1E-7")
    assert hash(amount) == hash(Decimal("1E-7"))
    assert str(pickle.loads(pickle.dumps(amount))) == "0.0000001"


def test_amounts_of_models_are_plain_in_text_and_json_computed_ones_too() -> None:
    budget = Budget(id="b", limit=Decimal("0.0000003"), current_spending=Decimal("0.0000001"))
    status = BudgetStatus(
        budget_id="b", scope=budget.scope, limit=Decimal("0.0000003"), settled=Decimal("1E-7"), held=Decimal("1E-8"),
        enforcement_mode=EnforcementMode.Hard, period=TimeWindow.Daily,
    )  # fmt: skip
    told = [str(budget), budget.model_dump_json(), repr(status), status.model_dump_json(), str(status.free)]
    assert not [text for text in (*told, str(budget.remaining), str(status.remaining)) if "E-" in text]
    assert json.loads(status.model_dump_json())["settled"] == "0.0000001"
    budget.limit = Decimal("1E-7")
    assert str(budget.limit) == "0.0000001"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1.6e-8, "0.000000016"),
        (0.4, "0.4"),
        (10200.0, "10200"),
        (0.1 + 0.2, "0.3"),
        (1e12, "1000000000000"),
        (0.0, "0"),
    ],
)
def test_numbers_of_explanations_are_written_out(number: float, told: str) -> None:
    assert plainly(number) == told
