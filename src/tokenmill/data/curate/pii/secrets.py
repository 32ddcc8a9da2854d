"""Keys, tokens and passwords: by the marks that their issuers put on them, by what they are assigned to, and by how
random they look.

Source of the marks: the issuers' documentation, as collected in gitleaks and detect-secrets.
"""

# ruff: noqa: E501, SIM905
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from tokenmill.data.curate.pii.hit import Hit

_END = r"(?![\w-])"
_MARKED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("aws", ("AKIA", "ASIA", "AROA", "AIDA"), r"(?<!\w)(?:AKIA|ASIA|AROA|AIDA)[A-Z2-7]{16}" + _END),
    ("github", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}" + _END),
    ("github", ("github_pat_",), r"(?<!\w)github_pat_\w{22,255}" + _END),
    ("gitlab", ("glpat-",), r"(?<!\w)glpat-[\w-]{20,64}" + _END),
    ("slack", ("xox",), r"(?<!\w)xox[abeoprs]-[\w-]{10,250}" + _END),
    ("slack", ("hooks.slack.com",), r"hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{20,}"),
    ("google", ("AIza",), r"(?<!\w)AIza[\w-]{35}" + _END),
    ("google", ("ya29.",), r"(?<!\w)ya29\.[\w-]{20,500}"),
    ("openai", ("sk-",), r"(?<![\w-])sk-(?:proj-|svcacct-|admin-|ant-|or-v1-)?[A-Za-z0-9_-]{20,250}" + _END),
    ("stripe", ("k_live_", "k_test_"), r"(?<!\w)[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}" + _END),
    ("huggingface", ("hf_",), r"(?<!\w)hf_[A-Za-z0-9]{30,64}" + _END),
    ("npm", ("npm_",), r"(?<!\w)npm_[A-Za-z0-9]{36}" + _END),
    ("pypi", ("pypi-AgE",), r"(?<!\w)pypi-AgE[\w-]{40,250}"),
    ("sendgrid", ("SG.",), r"(?<!\w)SG\.[\w-]{16,32}\.[\w-]{32,64}" + _END),
    ("telegram", (":AA",), r"(?<!\w)\d{8,10}:AA[\w-]{33}" + _END),
    ("digitalocean", ("dop_v1_",), r"(?<!\w)do[opr]_v1_[a-f0-9]{64}" + _END),
    ("jwt", ("eyJ",), r"(?<!\w)eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    ("private_key", ("PRIVATE KEY",), r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----[\s\S]{16,12000}?-----END [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----"),
    ("azure", ("AccountKey=",), r"(?<=AccountKey=)[A-Za-z0-9+/]{40,100}={0,2}"),
    ("password", ("://",), r"(?<=://)[^\s:/@\"'<>{}$]{1,64}:[^\s/@\"'<>{}$]{4,128}(?=@[\w.-])"),
)  # fmt: skip
_PATTERNS = tuple((name, marks, re.compile(pattern)) for name, marks, pattern in _MARKED)

_EXAMPLES = frozenset("pass password passwd pwd secret proxypass xxxx xxxxx xxxxxx **** ***** port".split())
"""What instructions write in place of a password."""
_NAMES = ("key", "secret", "token", "passw", "pwd", "credential", "bearer ")
_ASSIGNED = re.compile(
    r"""(?:key|secret|token|passw(?:or)?d|passphrase|pwd|credential)s?(?:_?(?:id|key|value|base64))?["']?\s{0,3}(?:=>|:=|[:=])\s{0,3}"""
    r"""(?P<quote>["'`]?)(?P<value>[A-Za-z0-9_\-+/=.!@#%^&*~$]{8,200})(?P=quote)(?![\w(\[])""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"bearer (?P<quote>)(?P<value>[A-Za-z0-9_\-+/=.]{20,500})", re.IGNORECASE)


def find_secret(text: str) -> Iterator[Hit]:
    """Secrets anywhere in the text."""
    for name, marks, pattern in _PATTERNS:
        if any(mark in text for mark in marks):
            for found in pattern.finditer(text):
                if name == "password":
                    likely = found.group().partition(":")[2].lower() not in _EXAMPLES
                else:
                    likely = name == "private_key" or entropy(found.group()) > 3.0
                if likely:
                    yield Hit(found.start(), found.end(), "secret", name)
    lower = text.lower()
    if len(lower) != len(text):  # a few capital letters become two characters: places would differ
        lower = text
    seen = -1
    for name in _NAMES:
        pattern = _BEARER if name == "bearer " else _ASSIGNED
        at = lower.find(name)
        while at >= 0:
            found_at = pattern.match(text, at)
            if found_at is not None and found_at.start("value") != seen and random_looking(found_at["value"]):
                seen = found_at.start("value")
                yield Hit(seen, found_at.end("value"), "secret", "assigned")
            at = lower.find(name, at + 1)


def entropy(word: str) -> float:
    """Shannon's, bits a character."""
    return -sum(n / len(word) * math.log2(n / len(word)) for n in Counter(word).values())


def random_looking(word: str) -> bool:
    """Whether a value is a secret rather than a name, a path, a version or a placeholder: letters and digits (or
    both cases) mixed, and more information a character than names have."""
    digits = sum(character.isdigit() for character in word)
    letters = sum(character.isalpha() for character in word)
    if letters < 2 or word.count("/") > 3 or word.count(".") > 2 or "$" in word[:1] or "..." in word:
        return False
    changes = len(re.findall(r"[a-z][A-Z]", word))
    longest = max((len(run) for run in re.findall(r"[a-z]+|[A-Z]+", word)), default=0)
    if digits < 2:  # letters alone: both cases in no order that a name has
        return 5 * changes + 4 * digits >= 0.7 * len(word) and longest <= 5 and entropy(word) >= 3.0
    return longest < max(8, len(word) // 2) and entropy(word) >= (2.8 if len(word) < 16 else 3.2)
