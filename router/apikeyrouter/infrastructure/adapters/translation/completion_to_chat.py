"""A request for a text completion as chat: the prompt is what the user says."""

from collections.abc import Mapping
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.parts import Body, refuse_all, refuse_unknown

__all__ = ["MAX_TOKENS_DEFAULT", "completion_to_chat"]

MAX_TOKENS_DEFAULT = 16
"""`max_tokens` of a completion that names none (API reference, November 2026)."""
_PASSED = (
    "model", "stream", "stream_options", "temperature", "top_p", "stop", "presence_penalty", "frequency_penalty",
    "seed", "user", "logit_bias",
)  # fmt: skip
_REFUSED = {
    "echo": "chat does not repeat what it was asked",
    "suffix": "chat fills no gaps",
}
_KNOWN = frozenset({*_PASSED, *_REFUSED, "prompt", "max_tokens", "n", "best_of", "logprobs"})


def completion_to_chat(body: Mapping[str, Any]) -> Body:
    """The body of a chat request. Raises InvalidRequestError naming what chat cannot say."""
    refuse_all(body, _REFUSED)
    refuse_unknown(body, _KNOWN)
    if body.get("logprobs") is not None:
        raise InvalidRequestError("log probabilities are not translated", field="logprobs")
    if (body.get("best_of") or 1) != 1:
        raise InvalidRequestError("only one answer is translated", field="best_of")
    chat: Body = {name: body[name] for name in _PASSED if body.get(name) is not None}
    chat["messages"] = [{"role": "user", "content": _prompt(body.get("prompt"))}]
    chat["max_tokens"] = MAX_TOKENS_DEFAULT if body.get("max_tokens") is None else body["max_tokens"]
    return chat


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        raise InvalidRequestError("tokens mean something to one provider only; send text", field="prompt")
    if isinstance(prompt, list):
        raise InvalidRequestError("only one prompt is translated", field="prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequestError("is required", field="prompt")
    return prompt
