"""Whether a model can serve a request at all: what the request needs, held against what is known of the model. Pure.

Asked only where the models of one name differ: an alias, or equivalents of several providers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.capabilities import ModelCapabilities, Needs
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.wire import ParsedRequest

BYTES_PER_TOKEN = 4
_TOOLS = ("tools", "functions")
_SHAPES = ("response_format", "output_config", "text", "generationConfig")
"""Members in which dialects ask for structured output."""
_STRUCTURED = (b"json_schema", b"json_object", b"responseSchema", b"responseJsonSchema")
_IMAGES = (b'"image', b'"input_image', b"image/")
"""What stands in a body with an image in it, whatever its dialect."""


def unable(call: Call, options: Sequence[Option], parsed: ParsedRequest | None) -> dict[Option, str]:
    """The options whose models cannot serve the call, with why not. `parsed`: the call in any dialect.

    An estimate alone refuses nobody: where every context looks too short, the providers decide.

    Raises:
        InvalidRequestError: no model can do what is asked for.
    """
    needs = needs_of(call, parsed)
    found = {option: why for option in options if (why := lacking(needs, option.able))}
    if len(found) == len(options):
        told = {f"{option.provider.id}/{option.model}: {why}" for option, why in found.items()}
        raise InvalidRequestError(f"no model of {call.model!r} can serve this request ({'; '.join(sorted(told))})")
    fitting = [option for option in options if option not in found]
    short = {option: why for option in fitting if (why := too_long(needs, option.able))}
    return found if len(short) == len(fitting) else {**found, **short}


def needs_of(call: Call, parsed: ParsedRequest | None) -> Needs:
    """What a call needs. `parsed`: it in some dialect, None where only the intent is known."""
    tokens = 0 if parsed is None else (parsed.text_bytes or parsed.input_bytes) // BYTES_PER_TOKEN
    if call.intent is not None:
        return _of_intent(call.intent, tokens)
    if parsed is None:
        return Needs()
    told = parsed.fields
    return Needs(
        input_tokens=tokens,
        vision=parsed.media > 0 and any(word in parsed.body for word in _IMAGES),
        tools=any(bytes(told[name]).strip() not in (b"[]", b"null") for name in _TOOLS if name in told),
        structured_output=any(
            word in bytes(told[name]) for name in _SHAPES if name in told for word in _STRUCTURED
        ),
    )  # fmt: skip


def lacking(needs: Needs, able: ModelCapabilities) -> str:
    """What the model cannot do of what is needed, in a few words; "" when nothing is known to stand in the way."""
    if needs.vision and able.vision is False:
        return "it takes no images"
    if needs.tools and able.tools is False:
        return "it calls no tools"
    if needs.structured_output and able.structured_output is False:
        return "it gives no structured output"
    return ""


def too_long(needs: Needs, able: ModelCapabilities) -> str:
    """Why the request is expected to be too long for the model; "" when it is not known to be."""
    if able.context_tokens is None or needs.input_tokens <= able.context_tokens:
        return ""
    return f"its context of {able.context_tokens} tokens is too short"


def _of_intent(intent: RequestIntent, input_tokens: int) -> Needs:
    parameters: Mapping[str, Any] = intent.parameters
    shape = parameters.get("response_format")
    kind = shape.get("type") if isinstance(shape, Mapping) else None
    parts = (part for message in intent.messages if isinstance(message.content, list) for part in message.content)
    return Needs(
        input_tokens=input_tokens,
        vision=any("image" in str(part.get("type", "")) for part in parts),
        tools=any(bool(parameters.get(name)) for name in _TOOLS),
        structured_output=kind in ("json_schema", "json_object"),
    )  # fmt: skip
