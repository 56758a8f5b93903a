"""Messages of a chat client as intents have them: the members that mean something to other dialects."""

from collections.abc import Mapping
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.chat_to_messages import LEGACY_CALL_ID
from apikeyrouter.infrastructure.adapters.translation.parts import Body, as_list, as_mapping

__all__ = ["intent_messages"]

_KEPT = ("role", "content", "name", "function_call", "tool_calls", "tool_call_id")


def intent_messages(messages: Any) -> list[Body]:
    """The messages, without what answers carry and nobody reads (thoughts, notes). Raises InvalidRequestError."""
    return [_message(as_mapping(message, "messages")) for message in as_list(messages, "messages")]


def _message(message: Mapping[str, Any]) -> Body:
    if message.get("audio"):
        raise InvalidRequestError("sound of earlier turns cannot be sent to another provider", field="messages.audio")
    kept = {name: message[name] for name in _KEPT if message.get(name) is not None}
    if kept.get("role") == "function":
        kept.update(role="tool", tool_call_id=LEGACY_CALL_ID)
    refusal = message.get("refusal")
    if refusal and not kept.get("content"):
        kept["content"] = refusal
    if kept.get("role") == "assistant" and not kept.keys() & {"content", "tool_calls", "function_call"}:
        kept["content"] = ""
    return kept
