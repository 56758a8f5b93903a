"""What the official SDKs, of whatever version is on the path, get from a running service. A program of its own:

    python conformance.py URL

prints JSON: versions, and by check "ok", "absent" (the SDK has no such method) or what went wrong.
"""

import asyncio
import json
import sys
import traceback
from typing import Any

import anthropic
import openai
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from pydantic import BaseModel

URL = sys.argv[1] if len(sys.argv) > 1 else ""
TOKEN = "token-of-the-application"
POOR = "token-of-the-poor-client"
GPT, CLAUDE, GEMINI = "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash"
HELLO: Any = [{"role": "user", "content": "hello there"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
SAID = "You said: hello there"


OVERLOADED = (anthropic.InternalServerError, getattr(anthropic, "OverloadedError", anthropic.InternalServerError))
"""What 529 is: older versions have a class for it, which is no InternalServerError."""


class Told(BaseModel):
    """A shape to answer in."""

    text: str


class Counting:
    """Counts the requests that an SDK sends."""

    def __init__(self, sdk: Any) -> None:
        self.count = 0
        self.http = sdk.DefaultHttpxClient(event_hooks={"request": [self._note]})

    def _note(self, request: Any) -> None:
        self.count += 1


def of_openai(token: str = TOKEN, **options: Any) -> Any:
    """OpenAI's client."""
    return openai.OpenAI(**{"api_key": token, "base_url": f"{URL}/v1", "max_retries": 0, **options})


def of_anthropic(token: str = TOKEN, **options: Any) -> Any:
    """Anthropic's client."""
    return anthropic.Anthropic(**{"api_key": token, "base_url": URL, "max_retries": 0, **options})


def of_google(token: str = TOKEN) -> Any:
    """Google's client."""
    return genai.Client(api_key=token, http_options=types.HttpOptions(base_url=URL))


def raised(kind: type[BaseException] | tuple[type[BaseException], ...], ask: Any) -> Any:
    """The exception that a call must end with."""
    try:
        ask()
    except kind as exc:
        return exc
    raise AssertionError(f"nothing was raised, {kind} was expected")


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def openai_endpoints() -> None:
    """Every endpoint, not streamed."""
    with of_openai() as client:
        assert client.chat.completions.create(model=GPT, messages=HELLO).choices[0].message.content.startswith(SAID)
        assert client.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello").choices[0].text
        response = client.responses.create(model=GPT, input="hello there")
        assert response.output_text.startswith(SAID)
        assert client.responses.retrieve(response.id).id == response.id
        assert client.responses.create(model=GPT, input="and?", previous_response_id=response.id).output_text
        client.responses.delete(response.id)
        vectors = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"]).data
        assert [len(one.embedding) > 1 for one in vectors] == [True, True]
        assert GPT in [model.id for model in client.models.list()]
        assert client.models.retrieve(GPT).id == GPT
        assert client.moderations.create(input="hi").results


def openai_streams() -> None:
    """Streams, and the helpers that put them together."""
    with of_openai() as client:
        chunks = list(client.chat.completions.create(model=GPT, messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith(SAID)
        with client.chat.completions.stream(model=GPT, messages=HELLO) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content.startswith(SAID)
        with client.responses.stream(model=GPT, input="hello there") as events:
            kinds = {event.type for event in events}
            assert events.get_final_response().output_text.startswith(SAID)
        assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds


def openai_tools_and_shapes() -> None:
    """Functions called, streamed and not, and answers of a shape."""
    forced = {"type": "function", "function": {"name": "weather"}}
    with of_openai() as client:
        asked = {"model": GPT, "messages": HELLO, "tools": [TOOL], "tool_choice": forced}
        call = client.chat.completions.create(**asked).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"city": "sample"}
        with client.chat.completions.stream(**asked) as stream:
            made = stream.get_final_completion().choices[0].message.tool_calls[0]
        assert made.function.arguments == call.function.arguments
        assert client.chat.completions.parse(model=GPT, messages=HELLO, response_format=Told).choices[0].message.parsed
        assert client.responses.parse(model=GPT, input="hi", text_format=Told).output_parsed == Told(text="sample")


def openai_translated() -> None:
    """The same of a provider that has only Messages."""
    with of_openai() as client:
        assert client.chat.completions.create(model=CLAUDE, messages=HELLO).choices[0].message.content.startswith(SAID)
        with client.responses.stream(model=CLAUDE, input="hello there") as events:
            assert events.get_final_response().output_text.startswith(SAID)
        assert client.responses.parse(model=CLAUDE, input="hi", text_format=Told).output_parsed == Told(text="sample")


def openai_errors() -> None:
    """Each error is of its own class, with type and code."""
    with of_openai() as client, of_openai("wrong") as stranger:
        create, kinds = client.chat.completions.create, openai
        assert raised(kinds.NotFoundError, lambda: create(model="no-such", messages=HELLO)).code == "model_not_found"
        assert raised(kinds.BadRequestError, lambda: create(model=GPT, messages=[])).type == "invalid_request_error"
        ask = stranger.chat.completions.create
        raised(kinds.AuthenticationError, lambda: ask(model=GPT, messages=HELLO))
        raised(kinds.PermissionDeniedError, lambda: create(model="gpt-4o-audio", messages=HELLO))
        broken = raised(kinds.APIError, lambda: list(create(model="gpt-4.1-nano", messages=HELLO, stream=True)))
        assert broken.code
        assert (
            raised(kinds.InternalServerError, lambda: create(model="gpt-4.1-mini", messages=HELLO)).status_code == 503
        )


def openai_retries() -> None:
    """It waits where that helps, and gives up at once where it does not."""
    _retries(openai, of_openai, lambda client, model: client.chat.completions.create(model=model, messages=HELLO), 0)


def openai_waits_until_there_is_room() -> None:
    """A limit that frees itself soon is waited for, as long as the hint says."""
    counting = Counting(openai)
    with of_openai(max_retries=3, http_client=counting.http) as client:
        for asked in range(1, 11):  # on a busy machine there may be room again before the next is asked
            assert client.chat.completions.create(model="gpt-4.1", messages=HELLO).choices
            if counting.count > asked:
                return
    raise AssertionError("none had to wait")


def openai_timeouts() -> None:
    """Its own timeout ends the call, not its patience."""
    with of_openai(timeout=0.5) as client:
        ask = client.chat.completions.create
        raised((openai.APITimeoutError, openai.InternalServerError), lambda: ask(model="o3", messages=HELLO))


def openai_leaves() -> None:
    """A stream that is left, and a call that is cancelled."""
    with of_openai() as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        next(iter(stream))
        stream.close()

    async def cancelled() -> None:
        async with openai.AsyncOpenAI(api_key=TOKEN, base_url=f"{URL}/v1", max_retries=0) as client:
            task = asyncio.create_task(client.chat.completions.create(model="o3", messages=HELLO))
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()

    asyncio.run(cancelled())


def _retries(sdk: Any, make: Any, ask: Any, number: int) -> None:
    """`number`: of the names by which models fail."""
    for token, models, kind, sent in (
        (TOKEN, ("gpt-4.1-mini", "claude-opus-4-1"), (sdk.InternalServerError, *OVERLOADED), 2),
        (TOKEN, ("gpt-5", "claude-sonnet-4"), sdk.RateLimitError, 1),
        (POOR, (GPT, CLAUDE), sdk.RateLimitError, 1),
    ):
        counting = Counting(sdk)
        with make(token, max_retries=1, http_client=counting.http) as client:
            model = models[number]
            raised(kind, lambda client=client, model=model: ask(client, model))
        assert counting.count == sent, f"{models[number]}: {counting.count} requests, not {sent}"


# --- Anthropic --------------------------------------------------------------------------------------------------------


def anthropic_endpoints() -> None:
    """Every endpoint, not streamed."""
    with of_anthropic() as client:
        message = client.messages.create(model=CLAUDE, max_tokens=50, messages=HELLO)
        assert message.content[0].text.startswith(SAID)
        assert message._request_id
        assert client.messages.count_tokens(model=CLAUDE, messages=HELLO).input_tokens > 0
        assert client.messages.count_tokens(model=GPT, messages=HELLO).input_tokens > 0
        assert CLAUDE in [model.id for model in client.models.list()]
        assert client.models.retrieve(CLAUDE).id == CLAUDE


def anthropic_streams() -> None:
    """Streams, and the helper that puts them together; of another provider too."""
    with of_anthropic() as client:
        events = list(client.messages.create(model=CLAUDE, max_tokens=50, messages=HELLO, stream=True))
        assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
        for model in (CLAUDE, GPT):
            with client.messages.stream(model=model, max_tokens=50, messages=HELLO) as stream:
                text = "".join(stream.text_stream)
                assert stream.get_final_message().usage.output_tokens > 0
            assert text.startswith(SAID)


def anthropic_tools() -> None:
    """Functions called, streamed and not."""
    asked: Any = {
        "model": CLAUDE, "max_tokens": 50, "messages": HELLO, "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather"},
    }  # fmt: skip
    with of_anthropic() as client:
        assert client.messages.create(**asked).content[0].input == {"city": "sample"}
        with client.messages.stream(**asked) as stream:
            assert stream.get_final_message().content[0].input == {"city": "sample"}


def anthropic_shapes() -> None:
    """Answers of a shape."""
    with of_anthropic() as client:
        parse = getattr(client.messages, "parse", None)
        if parse is None:
            raise AttributeError("messages.parse")
        told = parse(model=CLAUDE, max_tokens=50, messages=HELLO, output_format=Told)
        assert told.parsed_output == Told(text="sample")


def anthropic_errors() -> None:
    """Each error is of its own class."""
    with of_anthropic() as client, of_anthropic("wrong") as stranger:
        kinds = anthropic

        def create(model: str, of: Any = client, messages: Any = HELLO) -> Any:
            return of.messages.create(model=model, max_tokens=9, messages=messages)

        raised(kinds.NotFoundError, lambda: create("no-such"))
        raised(kinds.BadRequestError, lambda: create(CLAUDE, messages=[{"role": "robot", "content": "x"}, {}]))
        raised(kinds.AuthenticationError, lambda: create(CLAUDE, of=stranger))
        raised(kinds.PermissionDeniedError, lambda: create("gpt-4o-audio"))
        down = raised(OVERLOADED, lambda: create("claude-opus-4-1"))
        assert down.status_code in (503, 529)

        def broken() -> None:
            with client.messages.stream(model="claude-3-5-haiku-latest", max_tokens=9, messages=HELLO) as stream:
                stream.get_final_message()

        raised(kinds.APIStatusError, broken)


def anthropic_retries() -> None:
    """It waits where that helps, and gives up at once where it does not."""

    def ask(client: Any, model: str) -> None:
        client.messages.create(model=model, max_tokens=9, messages=HELLO)

    _retries(anthropic, of_anthropic, ask, 1)


def anthropic_timeouts_and_leaves() -> None:
    """Its own timeout ends the call; a stream that is left is left."""
    with of_anthropic(timeout=0.5) as client:
        ask = client.messages.create
        kinds = (anthropic.APITimeoutError, anthropic.InternalServerError)
        raised(kinds, lambda: ask(model="o3", max_tokens=9, messages=HELLO))
    with of_anthropic() as client, client.messages.stream(model="gpt-4o", max_tokens=900, messages=HELLO) as stream:
        next(iter(stream.text_stream))


# --- Google -----------------------------------------------------------------------------------------------------------


def google_endpoints() -> None:
    """Every endpoint, streamed and not."""
    client = of_google()  # which closes when nobody refers to it
    models = client.models
    assert models.generate_content(model=GEMINI, contents="hello there").text.startswith(SAID)
    text = "".join(chunk.text or "" for chunk in models.generate_content_stream(model=GEMINI, contents="hello there"))
    assert text.startswith(SAID)
    assert models.count_tokens(model=GEMINI, contents="hello there").total_tokens > 0
    assert models.embed_content(model="gemini-embedding-001", contents=["a", "b"]).embeddings
    assert any(GEMINI in (model.name or "") for model in models.list())
    assert models.generate_content(model=CLAUDE, contents="hello there").text.startswith(SAID)


def google_tools_and_shapes() -> None:
    """Functions called, and answers of a shape."""
    declared = {"function_declarations": [{"name": "weather", "parameters_json_schema": SCHEMA}]}
    wanted = {
        "tools": [declared],
        "tool_config": {"function_calling_config": {"mode": "ANY"}},
        "automatic_function_calling": {"disable": True},
    }
    client = of_google()  # which closes when nobody refers to it
    models = client.models
    answer = models.generate_content(model=GEMINI, contents="hi", config=wanted)
    assert answer.function_calls[0].args == {"city": "sample"}
    shaped = {"response_mime_type": "application/json", "response_schema": Told}
    assert models.generate_content(model=GEMINI, contents="hi", config=shaped).parsed == Told(text="sample")


def google_errors() -> None:
    """Each error is of its own class, with its code."""
    client = of_google()  # which closes when nobody refers to it
    models = client.models

    def ask(model: str, of: Any = models) -> Any:
        return of.generate_content(model=model, contents="hello there")

    assert raised(genai_errors.ClientError, lambda: ask("no-such")).code == 404
    stranger, poor = of_google("wrong"), of_google(POOR)
    assert raised(genai_errors.ClientError, lambda: ask(GEMINI, stranger.models)).code in (400, 401)
    assert raised(genai_errors.ServerError, lambda: ask("gemini-2.5-pro")).code == 503
    assert raised(genai_errors.ClientError, lambda: ask(GEMINI, poor.models)).code == 429
    stream = "gemini-2.0-flash"
    raised(genai_errors.APIError, lambda: list(models.generate_content_stream(model=stream, contents="hello there")))


CHECKS = [
    value
    for name, value in list(globals().items())
    if name.startswith(("openai_", "anthropic_", "google_")) and callable(value)
]


def main() -> None:
    """Run them all."""
    found: dict[str, str] = {}
    for check in CHECKS:
        try:
            check()
        except AttributeError as exc:
            found[check.__name__] = "absent" if "parse" in str(exc) else traceback.format_exc()
        except BaseException:
            found[check.__name__] = traceback.format_exc()
        else:
            found[check.__name__] = "ok"
    versions = {"openai": openai.__version__, "anthropic": anthropic.__version__, "google-genai": genai.__version__}
    print(json.dumps({"versions": versions, "checks": found}))


if __name__ == "__main__":
    main()
