"""The step ``language``: which language each document is in, with the model that CLD2 carries inside.

CLD2 (Apache-2.0, 83 languages, 14 MB in pycld2, no download) was chosen over py3langid, fastText's lid.176, CLD3,
lingua, ELD and resiliparse by accuracy on two sets of short texts and by speed; docs/data.md has the table.
"""

from __future__ import annotations

from tokenmill.config.parts import Count, Part, Share
from tokenmill.core.errors import UsageError
from tokenmill.data.curate.step import Context, Document, Tally


class LanguageOptions(Part):
    """What is found out and what stays."""

    keep: list[str] | None = None
    """ISO 639-1 codes, such as ``[en, de]``; other languages are dropped. Without it everything stays and is tagged."""
    min_share: Share = 0.0
    """Least share of a document that has to be in its main language."""
    unknown: bool = True
    """Keep documents whose language is not found out (tagged ``und``)."""
    characters: Count = 8192
    """How much of a document is looked at: half from its beginning, half from its middle."""


def build(options: LanguageOptions, context: Context) -> Language:
    """The step. UsageError: pycld2 is not installed, or `keep` names a language that CLD2 does not know."""
    try:
        import pycld2
    except ImportError as error:
        raise UsageError('the step language needs pycld2: pip install "tokenmill[data]"') from error
    known = {_code(code) for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES} - {"xx", "un"}
    unknown = [code for code in options.keep or () if code not in known]
    if unknown:
        raise UsageError(f"language.keep: no language {', '.join(unknown)}; known: {' '.join(sorted(known))}")
    return Language(options)


class Language:
    """Tags ``meta["language"]`` (ISO 639-1, ``und`` where it is not known) and ``meta["language_share"]``."""

    def __init__(self, options: LanguageOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        o = self.options
        going = []
        for document in documents:
            language, share = identify(excerpt(document.text, o.characters))
            document.meta["language"] = language
            document.meta["language_share"] = share
            if language == "und":
                stays = o.unknown
                reason = "unknown"
            elif o.keep is not None and language not in o.keep:
                stays, reason = False, language
            else:
                stays, reason = share >= o.min_share, "mixed"
            if stays:
                going.append(document)
            else:
                tally.drop(document, reason)
        tally.keep(len(going))
        return going


def excerpt(text: str, characters: int) -> str:
    """Beginning and middle of a long text."""
    if len(text) <= characters:
        return text
    half = characters // 2
    middle = len(text) // 2
    return text[:half] + "\n" + text[middle : middle + half]


def identify(text: str) -> tuple[str, float]:
    """Main language of a text and the share of it that is in this language; ``und`` and 0 where none is found.

    CLD2 refuses control characters and unassigned code points: they are taken out.
    """
    import pycld2

    try:
        _, _, found = pycld2.detect(text, bestEffort=True)
    except pycld2.error:
        plain = "".join(character if character.isprintable() else " " for character in text)
        try:
            _, _, found = pycld2.detect(plain, bestEffort=True)
        except pycld2.error:
            return "und", 0.0
    _, code, percent, _ = found[0]
    return ("und", 0.0) if code == "un" else (_code(code), round(percent / 100, 2))


def _code(code: str) -> str:
    """ISO 639-1 of CLD2's code: it keeps some that were replaced, and marks scripts."""
    return _REPLACED.get(code, code.partition("-")[0])


_REPLACED: dict[str, str] = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "nb": "no", "mo": "ro", "zh-Hant": "zh"}
