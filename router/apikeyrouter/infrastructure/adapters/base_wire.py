"""What the wires of all provider families share: a request is a client's body with a few members spliced in, and an
error is read by a table. A family says which members, which headers, and which table.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import quote

from apikeyrouter.domain.interfaces.wire import Headers, ParsedRequest, UpstreamRequest
from apikeyrouter.domain.models.accounting import Observation
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters import failure_table, rate_headers
from apikeyrouter.infrastructure.adapters.form import with_value
from apikeyrouter.infrastructure.adapters.forwarding import FIXED, FORWARDED, forwarded, safe_query
from apikeyrouter.infrastructure.adapters.json_body import read_members, splice
from apikeyrouter.infrastructure.adapters.openai_content import Measure
from apikeyrouter.infrastructure.adapters.rate_headers import HeaderLimit

__all__ = ["BaseWire", "parsed_request"]


class BaseWire(ABC):
    """One provider's dialect at one address.

    Args:
        base_url: without a slash at its end.
        family: selects the rows of the failure table that are this provider's own.
        now: Unix seconds, for dates in answers.
    """

    dialect: str
    operations: frozenset[str]
    rows: ClassVar[tuple[failure_table.Row, ...]]
    paths: ClassVar[Mapping[str, str]]
    """Operation → path."""
    methods: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Operation → HTTP method, where it is not POST."""
    forwards: ClassVar[frozenset[str]] = FORWARDED
    """Headers of a client that may go on."""
    limits: Iterable[HeaderLimit] = ()
    """What rate-limit headers there are."""
    models_path: ClassVar[str] = "/models"
    """Where models are listed, which is free: for health checks."""

    def __init__(self, base_url: str, family: str, *, now: Callable[[], float] = time.time) -> None:
        self.base_url = base_url.rstrip("/")
        self.family = family
        self.operations = frozenset(self.paths)
        self._now = now
        self._urls = {operation: self.base_url + path for operation, path in self.paths.items()}
        self._fixed = FIXED

    # --- what a family says --------------------------------------------------------------------------------------

    @abstractmethod
    def credentials(self, key: str) -> tuple[tuple[str, str], ...]:
        """The headers that carry a key."""

    @abstractmethod
    def _edits(
        self, parsed: ParsedRequest, operation: str, model: str, token_cap: int | None
    ) -> dict[str, bytes | None]:
        """The members to splice in; None takes one out."""

    def _url(self, parsed: ParsedRequest, operation: str, model: str) -> str:
        return self._urls[operation]

    def _always(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The client's headers that go on, with what the provider demands."""
        return headers

    def models_url(self) -> str:
        """Where models are listed."""
        return self.base_url + self.models_path

    def check_headers(self, key: str) -> Headers:
        """What a health check of a key sends along."""
        return (*self._always([]), *self.credentials(key))

    # --- what is the same for all --------------------------------------------------------------------------------

    def build(
        self,
        parsed: ParsedRequest,
        *,
        operation: str,
        model: str,
        token_cap: int | None,
        key: str,
        headers: Headers = (),
        path_query: str = "",
    ) -> UpstreamRequest:
        """The request to send: the client's body with the model, usage switch and token cap edited in."""
        url = self._url(parsed, operation, model)
        method, fixed = "POST", self._fixed
        if parsed.opaque:
            method = self.methods.get(operation, method)
            url = url.replace("{id}", quote(parsed.resource, safe=""))
            fixed = fixed if not parsed.content_type else _of_type(fixed, parsed.content_type)
            body = self._opaque_body(parsed, operation, model)
        else:
            body = splice(parsed.body, parsed.fields, self._edits(parsed, operation, model, token_cap))
        return UpstreamRequest(
            method=method,
            url=_with_query(url, path_query) if path_query else url,
            headers=(*fixed, *self.credentials(key), *self._always(forwarded(headers, self.forwards))),
            body=body,
        )

    def _opaque_body(self, parsed: ParsedRequest, operation: str, model: str) -> bytes:
        """The body of a request whose answer may be anything: none, a form, or JSON as it came but for its model."""
        if parsed.resource:
            return b""
        if parsed.content_type:
            return parsed.body if model == parsed.model else with_value(parsed.body, "model", model)
        return splice(parsed.body, parsed.fields, self._edits(parsed, operation, model, None))

    def _members(self, body: bytes, operation: str) -> dict[str, bytes]:
        """The body's members. Raises InvalidRequestError."""
        if operation not in self._urls:
            known = ", ".join(self._urls)
            raise InvalidRequestError(f"{operation!r} is not one of {known}", field="operation")
        return read_members(body)

    def classify(
        self, status: int, headers: Mapping[str, str], body: bytes, *, known_secrets: tuple[str, ...] = ()
    ) -> Failure:
        """What an error answer means. Total."""
        return failure_table.classify(
            self.rows,
            status,
            headers,
            body,
            now_us=int(self._now() * 1e6),
            provider=self.family,
            known_secrets=known_secrets,
        )

    def observe(self, headers: Mapping[str, str]) -> list[Observation]:
        """Rate-limit headers as observations; negatives (Azure: −1) and nonsense are ignored."""
        return rate_headers.observe(self.limits, headers, now_us=int(self._now() * 1e6))


def parsed_request(
    body: bytes,
    fields: Mapping[str, bytes],
    size: Measure,
    *,
    model: str,
    stream: bool,
    output_cap: int | None,
    choices: int = 1,
    include_usage: bool = True,
    service_tier: str | None = None,
) -> ParsedRequest:
    """What routing needs to know of a body that was measured."""
    return ParsedRequest(
        model=model,
        stream=stream,
        choices=choices,
        max_output_tokens=output_cap,
        input_bytes=size.raw if size.raw > 0 else 0,
        messages=size.messages,
        extra_tokens=size.extra,
        unbounded=size.unbounded,
        within_context=size.unbounded and not size.open_ended,
        include_usage=include_usage,
        fields=fields,
        text_bytes=size.text,
        media=size.media,
        extra_output_tokens=size.output,
        service_tier=service_tier,
        body=body,
    )


def _of_type(fixed: Headers, content_type: str) -> tuple[tuple[str, str], ...]:
    return tuple([(name, content_type if name == "content-type" else value) for name, value in fixed])


def _with_query(url: str, path_query: str) -> str:
    """The address with a client's query; what the address says already is not said twice."""
    query = safe_query(path_query)
    own, mark, said = url.partition("?")
    if not mark or not query:
        return url + query
    more = [pair for pair in query[1:].split("&") if pair not in said.split("&")]
    return f"{own}?{'&'.join([said, *more])}"
