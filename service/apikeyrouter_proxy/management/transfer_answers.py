"""What management answers of whole configurations: an export, what became of an import, of many keys."""

from typing import Any, Literal

from pydantic import AwareDatetime

from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.budget import Budget
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.infrastructure.config.stated import StatedLimits, StatedProvider
from apikeyrouter_proxy.admin_keys import AdminKey
from apikeyrouter_proxy.management.answers import AdminKeyShown, Answer, KeyShown, without
from apikeyrouter_proxy.webhooks import Webhook

ClientExported: Any = without(Client, "ClientExported", "token_sha256", "old_token_sha256", "old_token_until")
BudgetExported: Any = without(Budget, "BudgetExported", "current_spending", "resets_at")
WebhookExported: Any = without(Webhook, "WebhookExported", "sealed_secret")


class Exported(Answer):
    """What was made through the API or in code. With `secrets`: ciphertext and hashes, too."""

    version: Literal[1]
    exported_at: AwareDatetime
    secrets: bool
    providers: list[StatedProvider]
    keys: list[KeyShown | APIKey]
    limits: list[StatedLimits]
    clients: list[ClientExported | Client]
    budgets: list[BudgetExported]
    policies: list[Policy]
    admin_keys: list[AdminKeyShown | AdminKey]
    webhooks: list[WebhookExported | Webhook]


class EntryImported(Answer):
    """What became of one entry of a document."""

    section: str
    index: int
    id: str
    outcome: Literal["made", "replaced", "kept"]


class Imported(Answer):
    """What became of each entry, and how many of each kind were made, replaced, left as they were."""

    entries: list[EntryImported]
    made: dict[str, int]
    replaced: dict[str, int]
    kept: dict[str, int]
    dry_run: bool


class KeyImported(Answer):
    """What became of one row. `line`: where it begins, counted from 1; in a JSON array, which one it is."""

    line: int
    outcome: Literal["created", "updated", "unchanged", "refused"]
    id: str | None
    reason: str | None


class KeysImported(Answer):
    """What became of each row, in their order, and of how many what."""

    rows: list[KeyImported]
    created: int
    updated: int
    unchanged: int
    refused: int
    dry_run: bool
