"""What must never leave: key material, bearer tokens, and the identity of our accounts at providers.

Patterns: `providers.md` §7 ("Secret patterns to redact") and §0.9 (organisation ids and masked keys in error texts).
"""

import re

REDACTED = "[redacted]"
TEXT_MAX = 2000
"""Longest text kept, in characters; provider messages beyond it are cut."""

_SECRETS = re.compile(
    r"""
      \bsk-[\w*.-]{5,}[\w*-]                             # OpenAI, Anthropic, OpenRouter; also masked: sk-ab***cd
    | \bAIza[\w*-]{8,} | \bAQ\.[\w*-]{6,}               # Google
    | \bgsk_[\w*]{6,} | \bABSK[\w*+/=-]{6,}             # Groq, Bedrock
    | \bxai-[\w*-]{8,} | \bpplx-[\w*-]{8,} | \bnvapi-[\w*-]{8,} | \bhf_[\w*]{8,}
    | \b(?:AKIA|ASIA)[0-9A-Z]{12,}                      # AWS access key ids
    | \beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?            # JSON web tokens
    """,
    re.VERBOSE,
)
_NAMED = re.compile(
    r"""
      ( (?i:\b(?:bearer|basic)\s+) )                   [\w*.~+/=-]{7,}[\w*~+/=-]
    | ( (?i:[?&](?:api[_-]?key|key|access_token|token)=) )  [^\s&"'<>]+
    | ( (?i:\bapi[ _-]?key(?:\ provided)?\s*[:=]\s*["']?) ) [\w*.~+/=-]{5,}[\w*~+/=-]
    | ( \bprojects?/ | \bconsumer\s+(?=') )            (?: [\w-]+ | '[^']*' )
    """,
    re.VERBOSE,
)
"""What is secret because of what stands before it; those words stay, for they say what is wrong."""
_MASKED = re.compile(r"(?<![\w-])[\w-]{2,64}\*{3,}[\w*-]*")
"""A masked key of unknown make: `ab12****cd`."""

_ACCOUNTS = re.compile(
    r"""
      \borg-[\w-]{4,} | \borg_[\w-]{4,} | \bproj_[\w-]{4,} | \bwrkspc_[\w-]{4,} | \bacct_[\w-]{4,}
    | \b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b  # organisation ids at Anthropic
    | \bproject_number:\d+
    """,
    re.VERBOSE,
)


def redact(text: str, *, known: tuple[str, ...] = ()) -> str:
    """`text` without secrets, without account ids, and without any of `known` (exact key material in use).

    At most TEXT_MAX characters; control characters become spaces. Never raises.
    """
    if len(text) > 2 * TEXT_MAX:
        text = text[: 2 * TEXT_MAX]
    for secret in known:
        if secret:
            text = text.replace(secret, REDACTED)
    text = _NAMED.sub(_keep_name, _ACCOUNTS.sub(REDACTED, _SECRETS.sub(REDACTED, text)))
    if "***" in text:
        text = _MASKED.sub(REDACTED, text)
    if not text.isprintable():
        text = "".join([c if c.isprintable() else " " for c in text])
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _keep_name(found: re.Match[str]) -> str:
    return f"{found[found.lastindex or 0]}{REDACTED}"
