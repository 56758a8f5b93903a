"""Servers that speak OpenAI's dialect with an accent: Azure, Groq, Mistral, DeepSeek, OpenRouter (providers.md §1–3).

Each says only what it does otherwise: paths, credentials, limit headers, where usage stands, and its errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from apikeyrouter.simulator import openai_errors
from apikeyrouter.simulator.calls import Call, Context, Frame, InvalidRequest, Reply, encode, make_id
from apikeyrouter.simulator.compatible_errors import COMPATIBLE_FAILURES
from apikeyrouter.simulator.config import DialectName
from apikeyrouter.simulator.error_rows import NS_PER_SECOND, ErrorRow, render
from apikeyrouter.simulator.formats import ceil_seconds, go_duration
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.limits import NEVER
from apikeyrouter.simulator.meters import ConcurrencyMeter, Meter
from apikeyrouter.simulator.openai_dialect import ALL_ENDPOINTS, OpenAIDialect, event, tightest
from apikeyrouter.simulator.organisations import Denial, Key, Organisation

__all__ = ["AzureDialect", "DeepSeekDialect", "GroqDialect", "MistralDialect", "OpenRouterDialect"]

_CHAT = {"/chat/completions": ALL_ENDPOINTS["/chat/completions"]}
_CHAT_AND_EMBEDDINGS = {**_CHAT, "/embeddings": ALL_ENDPOINTS["/embeddings"]}
_METRICS = {"rpm": "requests per minute (RPM)", "rpd": "requests per day (RPD)", "tpm": "tokens per minute (TPM)",
            "tpd": "tokens per day (TPD)"}  # fmt: skip


class CompatibleDialect(OpenAIDialect):
    """What the five share: their own errors before OpenAI's."""

    def failure(self, name: str, context: Context, *, seconds: float | None) -> Reply | None:
        """See :meth:`Dialect.failure`."""
        row = COMPATIBLE_FAILURES[self.name].get(name)
        if row is None:
            return openai_errors.failure_reply(name, context, seconds=seconds)
        return render(row, context, wait_ns=None if seconds is None else int(seconds * NS_PER_SECOND))

    def denial(self, denial: Denial, context: Context) -> Reply:
        """See :meth:`Dialect.denial`; the words are those of the failure of that name."""
        row = COMPATIBLE_FAILURES[self.name][self.denied_as(denial)]
        wait_ns = NS_PER_SECOND if denial.wait_ns <= 0 else denial.wait_ns
        return render(row, context, wait_ns=wait_ns)

    def denied_as(self, denial: Denial) -> str:
        """The failure that a limit of this kind is reported as."""
        return "rate_limit_requests"

    def headers(self, context: Context, *, processing_ms: int) -> str:
        """Identity, and the limits as this server tells them."""
        lines = f"x-request-id: {context.request_id}\r\n"
        key = context.key
        return lines if key is None else lines + self.limit_headers(key, context)

    def limit_headers(self, key: Key, context: Context) -> str:
        """Rate-limit headers, as lines."""
        return ""


def _meter(key: Key, context: Context, name: str) -> Meter | None:
    """The limit of that name that counts a request for the model, or None."""
    return next((meter for meter in key.meters_for(context.model).timed if meter.name == name), None)


class GroqDialect(CompatibleDialect):
    """Requests are limited per day; usage of streams comes in ``x_groq``; a request above the limit is a 413."""

    name: DialectName = "groq"
    prefix = "/groq/openai/v1"
    endpoints = _CHAT
    shows_null_usage = False

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """As OpenAI's, but what was read from the cache is free."""
        tokens, read = super().charge_tokens(call, organisation)
        return tokens - call.usage.cached, read - call.usage.cached

    def opening(self, envelope: dict[str, Any]) -> Iterator[Frame]:
        """Nothing; the request's id comes with the last chunk."""
        return iter(())

    def with_the_last(self, call: Call, context: Context) -> dict[str, Any]:
        """``x_groq`` with the usage."""
        return {"x_groq": {"id": context.request_id, "usage": self.usage(call, context)}}

    def usage(self, call: Call, context: Context) -> dict[str, Any]:
        """OpenAI's counts, and times."""
        return {**super().usage(call, context), "queue_time": 0.01, "prompt_time": 0.01, "total_time": 0.05}

    def limit_headers(self, key: Key, context: Context) -> str:
        """``requests`` are those of a day, ``tokens`` those of a minute."""
        lines = ""
        for name, what in (("rpd", "requests"), ("tpm", "tokens")):
            meter = _meter(key, context, name)
            if meter is not None:
                reset = go_duration(meter.limit.replenished_in_ns(context.now_ns))
                lines += (
                    f"x-ratelimit-limit-{what}: {meter.amount}\r\n"
                    f"x-ratelimit-remaining-{what}: {meter.limit.remaining(context.now_ns)}\r\n"
                    f"x-ratelimit-reset-{what}: {reset}\r\n"
                )
        return lines

    def denial(self, denial: Denial, context: Context) -> Reply:
        """The limit, what is used of it, and the wait; 413 for what never fits."""
        meter = denial.meter
        org = "org-unknown" if context.organisation is None else context.organisation.id
        what = _METRICS.get(meter.name, meter.name)
        place = f"for model `{context.model}` in organization `{org}` service tier `on_demand` on {what}"
        tokens = isinstance(meter, Meter) and meter.metric != "requests"
        error = {"message": "", "type": "tokens" if tokens else "requests", "code": "rate_limit_exceeded"}
        if denial.wait_ns == NEVER:
            error["message"] = (
                f"Request too large {place}: Limit {meter.amount}, Requested {denial.requested}, please reduce your "
                "message size and try again."
            )
            return Reply(413, encode({"error": error}))
        wait_ns = denial.wait_ns or NS_PER_SECOND
        error["message"] = (
            f"Rate limit reached {place}: Limit {meter.amount}, Used {meter.amount - denial.remaining}, Requested "
            f"{denial.requested}. Please try again in {go_duration(wait_ns)}."
        )
        return render(ErrorRow(429, {"error": error}, "seconds"), context, wait_ns=wait_ns)


class MistralDialect(CompatibleDialect):
    """Unknown members are refused; usage always comes with the last chunk; headers name their window and no reset."""

    name: DialectName = "mistral"
    prefix = "/mistral/v1"
    endpoints = _CHAT_AND_EMBEDDINGS
    shows_null_usage = has_usage_chunk = False
    _known = frozenset(
        {
            "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed", "metadata",
            "response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n", "prediction",
            "parallel_tool_calls", "prompt_mode", "safe_prompt", "reasoning_effort", "prompt_cache_key", "input",
            "encoding_format", "output_dimension", "output_dtype",
        }
    )  # fmt: skip

    def parse(self, request: Request) -> Call:
        """See :meth:`Dialect.parse`; refuses members that Mistral does not know."""
        call = super().parse(request)
        for name in msgspec.json.decode(request.body, type=dict[str, msgspec.Raw]):
            if name not in self._known:
                raise InvalidRequest(name)
        return call

    def charge_tokens(self, call: Call, organisation: Organisation) -> tuple[int, int]:
        """The input; output counts as it is produced."""
        return call.input_tokens, call.input_tokens

    def invalid(self, message: str, context: Context) -> Reply:
        """A 422 that names the member."""
        problem = {"type": "extra_forbidden", "loc": ["body", message], "msg": "Extra inputs are not permitted"}
        if not message.isidentifier():
            problem = {"type": "value_error", "loc": ["body"], "msg": message}
        said = {"detail": [problem]}
        body = {"object": "error", "message": said, "type": "invalid_request_error", "param": None, "code": None}
        return Reply(422, encode(body))

    def with_the_last(self, call: Call, context: Context) -> dict[str, Any]:
        """The usage, asked for or not."""
        return {"usage": self.usage(call, context)}

    def usage(self, call: Call, context: Context) -> dict[str, Any]:
        """Three counts, and what was cached."""
        told = super().usage(call, context)
        return {name: told[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens",
                                              "prompt_tokens_details")}  # fmt: skip

    def limit_headers(self, key: Key, context: Context) -> str:
        """Limits and what is left, by minute; what the request cost."""
        lines = f"mistral-correlation-id: {context.request_id}\r\n"
        for name, what in (("rpm", "req-minute"), ("tpm", "tokens-minute")):
            meter = _meter(key, context, name)
            if meter is not None:
                lines += (
                    f"x-ratelimit-limit-{what}: {meter.amount}\r\n"
                    f"x-ratelimit-remaining-{what}: {meter.limit.remaining(context.now_ns)}\r\n"
                )
        return lines


class DeepSeekDialect(CompatibleDialect):
    """Only requests in flight are limited; usage comes with the last chunk; idle connections get comments."""

    name: DialectName = "deepseek"
    prefix = "/deepseek"
    endpoints = _CHAT
    shows_null_usage = has_usage_chunk = False

    def body(self, call: Call, context: Context) -> bytes:
        """Blank lines kept the connection alive until the JSON was there."""
        return b"\n\n" + super().body(call, context)

    def opening(self, envelope: dict[str, Any]) -> Iterator[Frame]:
        """A comment that keeps the connection alive."""
        yield Frame(b": keep-alive\n\n", 0)

    def with_the_last(self, call: Call, context: Context) -> dict[str, Any]:
        """The usage, asked for or not."""
        return {"usage": self.usage(call, context)}

    def usage(self, call: Call, context: Context) -> dict[str, Any]:
        """OpenAI's counts, and what the cache gave."""
        hit = call.usage.cached
        told = super().usage(call, context)
        del told["prompt_tokens_details"]
        return {**told, "prompt_cache_hit_tokens": hit, "prompt_cache_miss_tokens": call.usage.input - hit}


class OpenRouterDialect(CompatibleDialect):
    """Credits, limits of a key, spend in flight; each answer tells what it cost."""

    name: DialectName = "openrouter"
    prefix = "/openrouter/api/v1"
    endpoints = _CHAT_AND_EMBEDDINGS
    shows_null_usage = has_usage_chunk = False

    def opening(self, envelope: dict[str, Any]) -> Iterator[Frame]:
        """Comments until a provider answers."""
        yield Frame(b": OPENROUTER PROCESSING\n\n", 0)

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """See :meth:`Dialect.frames`; a chunk with usage and cost always comes before ``[DONE]``."""
        for frame in super().frames(call, context, tokens_per_chunk=tokens_per_chunk):
            if frame.data == b"data: [DONE]\n\n":
                yield Frame(event(self._last(call, context)), call.output_tokens)
            yield frame

    def _last(self, call: Call, context: Context) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {
            "id": make_id("gen-", context.serial),
            "object": "chat.completion.chunk",
            "created": context.now_ns // NS_PER_SECOND,
            "model": call.model,
            "choices": [choice],
            "usage": self.usage(call, context),
        }

    def usage(self, call: Call, context: Context) -> dict[str, Any]:
        """OpenAI's counts, and dollars."""
        return {**super().usage(call, context), **self._cost(call, context)}

    def embedding_usage(self, call: Call, context: Context) -> dict[str, Any]:
        """The same of embeddings."""
        return {**super().embedding_usage(call, context), **self._cost(call, context)}

    def _cost(self, call: Call, context: Context) -> dict[str, Any]:
        organisation = context.organisation
        nanousd = 0 if organisation is None else organisation.cost_nanousd(call.model, call.usage)
        return {"cost": nanousd / NS_PER_SECOND, "cost_details": {"upstream_inference_cost": None}}

    def error_frame(self, call: Call, context: Context) -> bytes:
        """A chunk with ``error`` beside its choices."""
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
        error = {"code": 502, "message": "Provider disconnected"}
        return event({"id": make_id("gen-", context.serial), "error": error, "choices": [choice]})

    def limit_headers(self, key: Key, context: Context) -> str:
        """The id of the generation; limits show in errors only."""
        return f"x-generation-id: {make_id('gen-', context.serial)}\r\n"

    def denied_as(self, denial: Denial) -> str:
        """Spend limits are credits, or a key's own; requests in flight are spend in flight."""
        if isinstance(denial.meter, ConcurrencyMeter):
            return "in_flight_budget"
        if denial.meter.metric != "spend":
            return "rate_limit_requests"
        return "insufficient_credits" if denial.meter.owner.scope == "organisation" else "key_limit"


class AzureDialect(CompatibleDialect):
    """The deployment in the path, the key in ``api-key``; requests are checked in slices of ten seconds."""

    name: DialectName = "azure"
    prefix = "/azure/openai"
    endpoints = {"/responses": ALL_ENDPOINTS["/responses"]}  # noqa: RUF012
    _deployments = "/azure/openai/deployments/"
    _in_deployment = frozenset({"/chat/completions", "/completions", "/embeddings"})

    def serves(self, path: str) -> bool:
        """See :meth:`Dialect.serves`."""
        if path in self.paths:
            return True
        _, found, rest = path.partition(self._deployments)
        name, _, operation = rest.partition("/")
        return bool(found and name) and f"/{operation}" in self._in_deployment

    def key_material(self, request: Request) -> str | None:
        """``api-key``, or a bearer token of Entra ID."""
        return request.header(b"api-key") or super().key_material(request)

    def parse(self, request: Request) -> Call:
        """See :meth:`Dialect.parse`; the deployment is the model, and a version is demanded."""
        if "api-version=" not in request.query:
            raise InvalidRequest("Missing required query parameter: api-version")
        if request.path in self.paths:
            return super().parse(request)
        name, _, operation = request.path.removeprefix(self._deployments).partition("/")
        body = request.body
        try:
            members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            body = encode({**members, "model": unquote(name)})
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # the parser says what is wrong
        call = ALL_ENDPOINTS[f"/{operation}"](body)
        call.model = unquote(name)
        return call

    def frames(self, call: Call, context: Context, *, tokens_per_chunk: int) -> Iterator[Frame]:
        """See :meth:`Dialect.frames`; what the filter thought of the prompt comes first."""
        if call.endpoint == "chat":
            results = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}]
            yield Frame(event({"choices": [], "id": "", "model": "", "prompt_filter_results": results}), 0)
        yield from super().frames(call, context, tokens_per_chunk=tokens_per_chunk)

    def denied_as(self, denial: Denial) -> str:
        """Calls or tokens."""
        metric = "requests" if isinstance(denial.meter, ConcurrencyMeter) else denial.meter.metric
        return "rate_limit_requests" if metric == "requests" else "rate_limit_tokens"

    def limit_headers(self, key: Key, context: Context) -> str:
        """``reset`` is in whole seconds."""
        lines = f"apim-request-id: {context.request_id}\r\nx-ms-region: Simulated\r\n"
        for metric in ("requests", "tokens"):
            meter = tightest(key.meters_for(context.model).timed, metric, context.now_ns)
            if meter is not None:
                reset = ceil_seconds(meter.limit.replenished_in_ns(context.now_ns))
                lines += (
                    f"x-ratelimit-limit-{metric}: {meter.amount}\r\n"
                    f"x-ratelimit-remaining-{metric}: {meter.limit.remaining(context.now_ns)}\r\n"
                    f"x-ratelimit-reset-{metric}: {reset}\r\n"
                )
        return lines
