"""Looks at how good answers are, from when somebody first asks for quality: until then it costs nothing."""

import time
from typing import TYPE_CHECKING

from apikeyrouter.domain.components.answer_quality import fault_of, schema_asked_for
from apikeyrouter.domain.models.call import ReadBody
from apikeyrouter.domain.models.system_response import SystemResponse

if TYPE_CHECKING:
    from apikeyrouter.serving.endings import Attempt

_PRODUCE_TEXT = frozenset({"chat", "completion", "responses", "messages"})


class AnswerWatch:
    """Notes of every answer whether it was of use, for the key and model that gave it."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether any objective looks at quality. To be asked before anything else is done."""

    def whole(self, attempt: "Attempt", body: bytes, read: ReadBody | None) -> None:
        """A complete answer, in its provider's dialect. `read`: what it says, if that is known."""
        if attempt.admitted.operation not in _PRODUCE_TEXT or attempt.wire is None:
            return
        answer = attempt.wire.read_answer(body) if read is None else read.answer
        self._note(
            attempt, answer.text, refusal=answer.refusal, calls_tools=bool(answer.tool_calls),
            finish_reason=answer.finish_reason,
        )  # fmt: skip

    def response(self, attempt: "Attempt", answer: SystemResponse) -> None:
        """A complete answer of an adapter that is no wire."""
        if attempt.admitted.operation in _PRODUCE_TEXT:
            self._note(
                attempt, answer.content, refusal=answer.refusal or "", calls_tools=bool(answer.tool_calls),
                finish_reason=answer.metadata.finish_reason,
            )  # fmt: skip

    def stream(self, attempt: "Attempt", produced: int) -> None:
        """A streamed answer that came to its end; nobody has kept its text, so no schema is held against it."""
        if attempt.admitted.operation in _PRODUCE_TEXT:
            capped, finish_reason = _capped(attempt), attempt.facts.finish_reason
            fault = fault_of(
                "." * min(1, produced), finish_reason=finish_reason, calls_tools=False, capped=capped, schema=None
            )
            _judge(attempt, fault)

    def _note(
        self, attempt: "Attempt", text: str, *, refusal: str, calls_tools: bool, finish_reason: str | None
    ) -> None:
        intent = attempt.call.intent
        schema = schema_asked_for(attempt.admitted.parsed, None if intent is None else intent.parameters)
        fault = fault_of(
            text, refusal=refusal, finish_reason=finish_reason, calls_tools=calls_tools, capped=_capped(attempt),
            schema=schema,
        )  # fmt: skip
        _judge(attempt, fault)


def _capped(attempt: "Attempt") -> bool:
    parsed = attempt.admitted.parsed
    return attempt.admitted.token_cap is not None or (parsed is not None and parsed.max_output_tokens is not None)


def _judge(attempt: "Attempt", fault: str) -> None:
    attempt.own.fault = fault
    attempt.admitted.option.seen.judged(0.0 if fault else 1.0, time.perf_counter())
