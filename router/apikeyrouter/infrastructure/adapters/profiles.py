"""What servers that speak OpenAI's dialect differ in: address, operations, switches, limit headers, names of errors.

Facts: `providers.md` §1.1, §1.2 and §2.1 (November 2026), and each provider's API reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from apikeyrouter.domain.models.accounting import Metric
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.rate_headers import DAY_US, MINUTE_US, HeaderLimit, header_limits

__all__ = ["PROFILES", "Profile", "find_profile"]

_TEXT = frozenset({"chat", "completion", "embedding", "responses"})
_IMAGES = frozenset({"image", "image_edit", "image_variation"})
_SOUND = frozenset({"speech", "transcription", "translation"})
_EVERYTHING = _TEXT | _IMAGES | _SOUND | {"moderation", "rerank"}
_CHAT = frozenset({"chat"})
_STEM = "x-ratelimit-{what}-{which}"

PER_MINUTE = header_limits(
    _STEM, ("requests", "rpm", Metric.REQUESTS, MINUTE_US), ("tokens", "tpm", Metric.TOKENS, MINUTE_US)
)
PROJECT = header_limits(_STEM, ("project-tokens", "tpm", Metric.TOKENS, MINUTE_US))
REQUESTS_PER_DAY = header_limits(
    _STEM, ("requests", "rpd", Metric.REQUESTS, DAY_US), ("tokens", "tpm", Metric.TOKENS, MINUTE_US)
)
NAMED_WINDOWS = header_limits(
    _STEM,
    ("requests-minute", "rpm", Metric.REQUESTS, MINUTE_US),
    ("requests-day", "rpd", Metric.REQUESTS, DAY_US),
    ("tokens-minute", "tpm", Metric.TOKENS, MINUTE_US),
    ("tokens-day", "tpd", Metric.TOKENS, DAY_US),
)
"""Cerebras and others: the header names its window."""
MISTRAL_LIMITS = (
    *header_limits(
        _STEM, ("req-minute", "rpm", Metric.REQUESTS, MINUTE_US), ("tokens-minute", "tpm", Metric.TOKENS, MINUTE_US)
    ),
    *header_limits("x-ratelimitbysize-{what}-{which}", ("minute", "tpm", Metric.TOKENS, MINUTE_US)),
    *header_limits("ratelimitbysize-{what}{which}", ("", "tpm", Metric.TOKENS, MINUTE_US)),
)
"""The newer names, and two older ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One provider's variety of the dialect.

    `base_url` None: it has to be given. `inject_usage`: the usage chunk has to be asked for (`stream_options`); False:
    usage comes anyway, or the server refuses the member. `cap_member`: what a token cap is called in chat.
    `renamed`: members of a request that this server knows by another name (None: refuses, although they change no
    answer).
    `meters_output_cap`: tokens a minute are charged with the cap at arrival. `free_cache`: cached input is not counted.
    `tells_cost`: `usage.cost` is what is charged, in dollars.
    """

    name: str
    base_url: str | None = None
    operations: frozenset[str] = _CHAT
    inject_usage: bool = True
    cap_member: str = "max_tokens"
    renamed: tuple[tuple[str, str | None], ...] = ()
    limits: tuple[HeaderLimit, ...] = PER_MINUTE
    meters_output_cap: bool = True
    free_cache: bool = False
    tells_cost: bool = False


OPENAI = Profile(
    name="openai",
    base_url="https://api.openai.com/v1",
    operations=_TEXT | _IMAGES | _SOUND | {"moderation"},
    cap_member="max_completion_tokens",
    limits=PER_MINUTE + PROJECT,
)
AZURE = Profile(name="azure", operations=_TEXT | _IMAGES | _SOUND, cap_member="max_completion_tokens")
COMPATIBLE = Profile(name="compatible", operations=_EVERYTHING, limits=PER_MINUTE + NAMED_WINDOWS)
"""Any other server: what all of them take."""
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            OPENAI,
            AZURE,
            COMPATIBLE,
            # Usage comes with the last chunk; unknown members are a 422 (llm clients' issues, 2024 to 2025).
            Profile(
                name="mistral",
                base_url="https://api.mistral.ai/v1",
                operations=frozenset({"chat", "embedding", "moderation", "transcription"}),
                inject_usage=False,
                renamed=(
                    ("max_completion_tokens", "max_tokens"),
                    ("seed", "random_seed"),
                    ("stream_options", None),
                    ("store", None),
                    ("user", None),
                ),
                limits=MISTRAL_LIMITS,
                meters_output_cap=False,
            ),
            # Requests are counted per day; usage comes in `x_groq` too; cached tokens are free.
            Profile(
                name="groq",
                base_url="https://api.groq.com/openai/v1",
                operations=frozenset({"chat", "responses"}) | _SOUND,
                cap_member="max_completion_tokens",
                limits=REQUESTS_PER_DAY,
                free_cache=True,
            ),
            # Concurrency is the only limit; usage comes with the last chunk of content.
            Profile(
                name="deepseek",
                base_url="https://api.deepseek.com",
                operations=frozenset({"chat", "completion"}),
                renamed=(("max_completion_tokens", "max_tokens"),),
                limits=(),
                meters_output_cap=False,
            ),
            # Usage and its cost always come with the last chunk; requests are counted, tokens are not.
            Profile(
                name="openrouter",
                base_url="https://openrouter.ai/api/v1",
                operations=frozenset({"chat", "completion", "embedding", "responses"}),
                inject_usage=False,
                limits=header_limits(_STEM, ("requests", "rpm", Metric.REQUESTS, MINUTE_US)),
                meters_output_cap=False,
                tells_cost=True,
            ),
            Profile(name="vllm", base_url="http://127.0.0.1:8000/v1", operations=_EVERYTHING, limits=()),
            Profile(
                name="ollama",
                base_url="http://127.0.0.1:11434/v1",
                operations=frozenset({"chat", "completion", "embedding", "responses"}),
                limits=(),
            ),
            Profile(name="llamacpp", base_url="http://127.0.0.1:8080/v1", operations=_EVERYTHING, limits=()),
        )
    }
)

_HOSTS = {
    urlsplit(profile.base_url).hostname: profile
    for profile in PROFILES.values()
    if profile.base_url is not None and profile.base_url.startswith("https")
}


def find_profile(name: str | None, base_url: str | None) -> Profile:
    """The profile of that name; without a name the one whose host the URL names, else the compatible one.

    Raises:
        ConfigurationError: no profile of that name.
    """
    if name is None:
        return OPENAI if base_url is None else _HOSTS.get(urlsplit(base_url).hostname, COMPATIBLE)
    found = PROFILES.get(name)
    if found is None:
        raise ConfigurationError(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    return found
