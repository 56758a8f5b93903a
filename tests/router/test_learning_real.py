"""Expected input tokens of real texts that nobody chose for it: of what lies on the machine that runs the tests."""

import gettext
import random
import sysconfig
from base64 import b64encode
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import mean

import msgspec
import pytest
from splintr import Tokenizer

from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter

WIRE = OpenAIAdapter("http://127.0.0.1:1").wire
TOKENISERS = {name: Tokenizer.from_pretrained(name) for name in ("o200k_base", "qwen3")}
CATALOGUES = Path("/usr/share/locale")
SHORTEST, LONGEST = 150, 20_000
REQUESTS, ASKED = 200, 150
CATALOGUES_BYTES_MIN = 200_000


def code() -> list[str]:
    """The standard library of Python, without its tables of characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")) if _is_code(path, root)]
    return [path.read_text("utf-8") for path in found if path.stat().st_size > LONGEST // 4]


def _is_code(path: Path, root: Path) -> bool:
    return path.relative_to(root).parts[0] not in ("encodings", "site-packages", "test", "pydoc_data", "lib2to3")


def english() -> list[str]:
    """What the modules of the standard library say of themselves."""
    texts = [line for text in code() for line in text.split('"""')[1::2]]
    return ["\n".join(texts)]


def base64() -> list[str]:
    """Bytes that mean nothing."""
    return [b64encode(random.Random(1).randbytes(200_000)).decode()]


def messages(language: str, letters: Callable[[str], bool], most: float) -> list[str]:
    """What programs on this machine say in a language."""
    found = []
    for path in sorted(CATALOGUES.glob(f"{language}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            told = gettext.GNUTranslations(file)._catalog.values()  # type: ignore[attr-defined]
        own = [text for text in told if isinstance(text, str) and sum(map(letters, text)) > most * len(text) > 5]
        found.append("\n".join(own))
    return [text for text in found if len(text) > SHORTEST]


CORPORA: dict[str, Callable[[], list[str]]] = {
    "code": code,
    "english": english,
    "base64": base64,
    "russian": lambda: messages("ru", lambda letter: "а" <= letter.lower() <= "я", 0.5),
    "chinese": lambda: messages("zh_CN", lambda letter: letter > "\u2e80", 0.25),
}


def texts(kind: str, seed: int, count: int) -> list[str]:
    """Parts of a corpus, of every length from a line to twenty thousand letters."""
    corpus, chance = CORPORA[kind](), random.Random(seed)
    if sum(len(text.encode()) for text in corpus) < CATALOGUES_BYTES_MIN:
        pytest.skip(f"this machine has too little {kind}")
    found: list[str] = []
    while len(found) < count:
        text, size = chance.choice(corpus), int(exp(chance.uniform(log(SHORTEST), log(LONGEST))))
        start = chance.randrange(max(1, len(text) - size))
        part = text[start : start + size].strip()
        if len(part) >= SHORTEST * 2 // 3:
            found.append(part)
    return found


def error_after(asked: list[str], then: list[str], tokeniser: str) -> float:
    """The mean relative error of the expected input of some requests, once others were answered."""
    count, estimator, errors = TOKENISERS[tokeniser], TokenEstimator(), []
    for number, text in enumerate((*asked, *then)):
        body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text}]})
        estimate = estimator.estimate("p", "m", WIRE.parse(body, operation="chat"))
        tokens = len(count.encode(text)) + 7
        if number < len(asked):
            told = Usage(input_tokens=tokens, output_tokens=3)
            estimator.learn("p", "m", shape=estimate.shape, choices=1, usage=told)
        else:
            errors.append(abs(estimate.input_tokens - tokens) / tokens)
    return mean(errors)


@pytest.mark.parametrize("tokeniser", TOKENISERS)
@pytest.mark.parametrize("kind", CORPORA)
def test_after_two_hundred_requests_the_expected_input_of_real_text_is_right_within_a_tenth(
    kind: str, tokeniser: str
) -> None:
    found = texts(kind, 1, REQUESTS + ASKED)
    assert error_after(found[:REQUESTS], found[REQUESTS:], tokeniser) <= 0.10


@pytest.mark.parametrize("tokeniser", TOKENISERS)
@pytest.mark.parametrize("kind", ["code", "english", "base64"])
def test_two_hundred_requests_of_three_kinds_are_enough_for_each_of_them(kind: str, tokeniser: str) -> None:
    asked = [text for one in ("code", "english", "base64") for text in texts(one, 2, REQUESTS // 3)]
    random.Random(2).shuffle(asked)
    assert error_after(asked, texts(kind, 3, ASKED), tokeniser) <= 0.10


@pytest.mark.parametrize("kind", CORPORA)
def test_a_model_that_was_never_asked_is_expected_within_a_fifth(kind: str) -> None:
    assert error_after([], texts(kind, 4, ASKED), "o200k_base") <= 0.20
