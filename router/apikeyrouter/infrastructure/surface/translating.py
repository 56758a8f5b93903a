"""Requests that providers of other dialects may serve as well, and their answers put back into the client's own.

A request is translated only when a provider that has not its endpoint serves its model, an answer only when such a one
gave it.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.interfaces.wire import DeltaReader
from apikeyrouter.domain.models.call import Call, Chunks, Exchange, Facts
from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse
from apikeyrouter.domain.models.wire import Answer, StreamDelta
from apikeyrouter.infrastructure.adapters.translation import answers
from apikeyrouter.infrastructure.adapters.translation.completion_to_chat import completion_to_chat
from apikeyrouter.infrastructure.adapters.translation.generate_to_chat import generate_to_chat
from apikeyrouter.infrastructure.adapters.translation.messages import intent_messages
from apikeyrouter.infrastructure.adapters.translation.messages_to_chat import messages_to_chat
from apikeyrouter.infrastructure.adapters.translation.parts import as_mapping
from apikeyrouter.infrastructure.adapters.translation.response_writer import (
    ResponseWriter,
    response_echo,
    write_response,
)
from apikeyrouter.infrastructure.adapters.translation.responses_to_chat import responses_to_chat
from apikeyrouter.infrastructure.adapters.translation.streams import (
    ChatWriter,
    CompletionWriter,
    GenerateWriter,
    MessageWriter,
    StreamWriter,
)

__all__ = ["TRANSLATED", "in_own_words", "translated", "widen"]

Body = dict[str, Any]
Serve = Callable[[Call], Awaitable[Exchange]]
Count = Callable[[Call], Awaitable[tuple[int, Facts]]]
COUNT = "count_tokens"
_READ: Mapping[tuple[str, str], Callable[[Body, Call], Body]] = {
    ("openai", "chat"): lambda body, _: body,
    ("openai", "embedding"): lambda body, _: body,
    ("openai", "responses"): lambda body, _: responses_to_chat(body),
    ("openai", "completion"): lambda body, _: completion_to_chat(body),
    **dict.fromkeys((("anthropic", "messages"), ("anthropic", COUNT)), lambda body, _: messages_to_chat(body)),
    **dict.fromkeys(
        (("gemini", "generate"), ("gemini", "stream_generate"), ("gemini", "stream_events")),
        lambda body, call: generate_to_chat(body, model=call.model, stream=call.stream),
    ),
    ("gemini", COUNT): lambda body, call: generate_to_chat(_to_count(body), model=call.model, stream=False),
}
"""By dialect and operation, a client's body in the words of chat."""
TRANSLATED = frozenset(_READ)
"""What can be translated at all, as (dialect, operation)."""


def widen(call: Call, catalogue: Catalogue) -> None:
    """Let providers of other dialects serve the call too, if there are any and they can be asked.

    Raises:
        InvalidRequestError: there are only such, and the request cannot be said in another dialect.
        ModelNotFoundError: no key serves the model.
    """
    read = _READ.get((call.dialect, call.operation))
    if read is None or call.group:
        return
    samples = catalogue.pool(call.model, call.provider_id, "", call.team).samples
    strangers = [sample for sample in samples if not sample.provider.speaks(call.dialect, call.operation)]
    if not any(_can_be_asked(sample, call) for sample in strangers):
        return
    alone = len(strangers) == len(samples)
    if call.operation == COUNT and not alone:
        return  # who counts exactly is asked
    try:
        call.intent = _intent(call, read)
    except InvalidRequestError:
        if alone:
            raise


async def translated(call: Call, serve: Serve, count: Count) -> Exchange:
    """The answer to a call that was widened, in the client's dialect. Raises as what it is served by.

    `serve`: the router's. `count`: how many tokens the call has, for which nobody is asked.
    """
    if call.operation != COUNT:
        return in_own_dialect(await serve(call), call)
    tokens, facts = await count(call)
    told = {"totalTokens": tokens} if call.dialect == "gemini" else {"input_tokens": tokens}
    return Exchange(status=200, content_type="application/json", facts=facts, body=msgspec.json.encode(told))


def in_own_dialect(exchange: Exchange, call: Call) -> Exchange:
    """The answer as the client's dialect has it: as it is, unless a provider of another one gave it."""
    if in_own_words(exchange, call):
        return exchange
    if exchange.chunks is None:
        exchange.body = _written(_answer(exchange), call)
        exchange.content_type = "application/json"
    else:
        deltas = None if exchange.wire is None else exchange.wire.deltas()
        exchange.chunks = TranslatedStream(exchange.chunks, deltas, _writer(call, exchange.facts), exchange.facts)
        exchange.content_type = "application/json" if call.operation == "stream_generate" else "text/event-stream"
    return exchange


def in_own_words(exchange: Exchange, call: Call) -> bool:
    """Whether a provider gave the answer as the client asked for it."""
    if call.intent is None or call.parsed is None:
        return True
    wire = exchange.wire
    return wire is not None and wire.dialect == call.dialect and call.operation in wire.operations


class TranslatedStream:
    """A stream in another dialect than it came in. Ends and breaks as that one does."""

    def __init__(self, chunks: Chunks, deltas: DeltaReader | None, writer: StreamWriter, facts: Facts) -> None:
        self._chunks, self._deltas, self._writer, self._facts = chunks, deltas, writer, facts
        self._ended = False

    def __aiter__(self) -> "TranslatedStream":
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                piece = await self._chunks.__anext__()
            except StopAsyncIteration:
                self._ended = True
                return self._writer.end(self._facts.finish_reason, self._facts.usage)
            out = b"".join([self._writer.delta(delta) for delta in self._deltas_of(piece)])
            if out:
                return out
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up the rest. Idempotent."""
        self._ended = True
        await self._chunks.aclose()

    def _deltas_of(self, piece: bytes | StreamChunk) -> list[StreamDelta]:
        if not isinstance(piece, StreamChunk):
            return [] if self._deltas is None else self._deltas.read(piece)
        delta = StreamDelta(
            text=piece.text, reasoning=piece.reasoning or "", refusal=piece.refusal or "",
            tool_calls=tuple(piece.tool_calls or ()), finish_reason=piece.finish_reason,
        )  # fmt: skip
        return [delta]


def _can_be_asked(option: Option, call: Call) -> bool:
    """Whether a provider takes intents of the kind that the call becomes."""
    wanted = Operation.Embedding if call.operation == "embedding" else Operation.Chat
    return wanted in option.provider.takes


def _to_count(body: Body) -> Body:
    """What a request for a count is about: its contents, or a whole request inside."""
    inner = body.get("generateContentRequest") or body.get("generate_content_request")
    return body if inner is None else dict(as_mapping(inner, "generateContentRequest"))


def _intent(call: Call, read: Callable[[Body, Call], Body]) -> RequestIntent:
    """What the client's body says, in the words of chat. Raises InvalidRequestError."""
    assert call.parsed is not None
    body = read(msgspec.json.decode(call.parsed.body, type=dict[str, Any]), call)
    if call.parsed.choices != 1:
        raise InvalidRequestError("only one answer is translated", field="n")
    parameters = {
        name: value
        for name, value in body.items()
        if name not in ("model", "messages", "stream", "stream_options", "provider_id") and value is not None
    }
    try:
        if call.operation == "embedding":
            return RequestIntent(model=call.model, operation=Operation.Embedding, payload=parameters)
        messages = intent_messages(body.get("messages"))
        return RequestIntent.parse({"model": call.model, "messages": messages, "parameters": parameters})
    except InvalidRequestError as exc:
        raise InvalidRequestError(exc.reason, field=exc.field.removeprefix("parameters.")) from exc


def _answer(exchange: Exchange) -> Answer:
    if exchange.read is not None:
        return exchange.read.answer
    assert exchange.response is not None
    return _of_response(exchange.response, exchange.facts)


def _of_response(response: SystemResponse, facts: Facts) -> Answer:
    return Answer(
        text=response.content, reasoning=response.reasoning or "", refusal=response.refusal or "",
        tool_calls=tuple(response.tool_calls or ()), finish_reason=response.metadata.finish_reason, usage=facts.usage,
        model=response.metadata.model_used, id=facts.request_id, embeddings=tuple(response.embeddings or ()),
    )  # fmt: skip


def _written(answer: Answer, call: Call) -> bytes:
    if call.dialect == "anthropic":
        return answers.write_message(answer, call.model)
    if call.dialect == "gemini":
        return answers.write_generate(answer, call.model)
    if call.operation == "responses":
        return write_response(answer, call.model, _echo(call))
    if call.operation == "completion":
        return answers.write_completion(answer, call.model)
    if call.operation != "embedding":
        return answers.write_chat(answer, call.model)
    assert call.intent is not None
    packed = (call.intent.payload or {}).get("encoding_format") == "base64"
    return answers.write_embeddings(answer, call.model, packed=packed)


def _writer(call: Call, facts: Facts) -> StreamWriter:
    assert call.parsed is not None
    id_, model = call.request_id.removeprefix("req_"), facts.model_used
    if call.dialect == "anthropic":
        return MessageWriter(id_, model)
    if call.dialect == "gemini":
        return GenerateWriter(id_, model, array=call.operation == "stream_generate")
    if call.operation == "responses":
        return ResponseWriter(id_, model, _echo(call))
    writer = CompletionWriter if call.operation == "completion" else ChatWriter
    return writer(id_, model, include_usage=call.parsed.include_usage)


def _echo(call: Call) -> Body:
    assert call.parsed is not None
    return response_echo(call.parsed.fields)
