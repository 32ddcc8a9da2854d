"""The step ``clean``: broken encodings mended, one form for every character, what nobody sees removed, white space and
boilerplate lines tidied.

Order: ftfy (mojibake, entities), Unicode normal form, invisible and control characters, line ends and white space,
boilerplate. Plain ASCII, most text, passes all but the last two unlooked at.
"""

# ruff: noqa: E501
from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import Field

from tokenmill.config.parts import Part
from tokenmill.core.errors import UsageError
from tokenmill.data.curate.rewrite import rewrite
from tokenmill.data.curate.step import Context, Document, Tally

BOILERPLATE = (
    r"(?:we|this (?:web)?site|our (?:web)?site|this page) uses? cookies.{0,160}",
    r"(?:accept|reject|manage|allow)(?: all)? cookies(?: and .{0,40})?",
    r"by (?:continuing|using|browsing).{0,60}(?:cookies|terms of (?:use|service)|privacy policy).{0,80}",
    r"(?:privacy policy|terms (?:of (?:use|service)|and conditions)|cookie policy)(?: ?[|·•/&-] ?.{0,80})?",
    r"(?:©|\(c\)|copyright).{0,120}all rights reserved\.?",
    r"all rights reserved\.?",
    r"(?:skip|jump) to (?:main |the )?(?:content|navigation)",
    r"(?:click|tap) here to (?:subscribe|share|print|read more|enlarge).{0,60}",
    r"(?:share|follow us|like us|tweet|print|e-?mail)(?: this)?(?: on)?(?: (?:facebook|twitter|x|linkedin|instagram|pinterest|whatsapp))+",
    r"(?:sign up|subscribe)(?: now)?(?: for| to) (?:our|the) (?:free )?(?:daily |weekly )?newsletter.{0,80}",
    r"(?:log ?in|sign ?in|register)(?: (?:or|/|\|) (?:log ?in|sign ?in|sign ?up|register))*(?: to (?:comment|continue|reply).{0,40})?",
    r"please (?:enable|turn on|activate) javascript.{0,100}",
    r"(?:read|show|load|see|view) more(?: \.\.\.|…)?",
    r"loading(?:\.\.\.|…)?",
    r"advertise?ment",
    r"(?:home|main)(?: ?[|>»·] ?[\w ]{2,24}){2,12}",
    r"(?:diese (?:web)?seite|wir) verwende[nt] cookies.{0,160}",
    r"(?:impressum|datenschutz(?:erkl[äa]rung)?)(?: ?[|·•/&-] ?.{0,80})?",
    r"(?:ce site|nous) utilis(?:e|ons) des cookies.{0,160}",
    r"(?:este sitio|esta web|usamos|utilizamos).{0,20}cookies.{0,160}",
)  # fmt: skip
"""Whole lines that web pages are framed with, in lower case."""


class CleanOptions(Part):
    """Which of the turns; all by default."""

    normal_form: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normal form. NFKC also folds ligatures, widths and superscripts, which loses meaning in formulas."""
    mojibake: bool = True
    """Mend text that was decoded wrongly (``schÃ¶n``), with ftfy; its curly quotes stay."""
    invisible: bool = True
    """Remove zero-width and control characters, byte order marks, soft hyphens and bidirectional overrides; joiners stay
    where scripts need them."""
    white_space: bool = True
    """Line ends become ``\\n``, other spaces plain ones, runs of spaces inside a line and at its end go (indentation
    stays), of three and more empty lines two stay."""
    boilerplate: bool = True
    """Cut lines of cookie banners, navigation and the like, where the whole line is one. Not in conversations."""
    patterns: list[str] = Field(default_factory=list)
    """More expressions for such lines, matched against the whole line in lower case."""


def build(options: CleanOptions, context: Context) -> Clean:
    """The step. ConfigError: an expression that does not compile."""
    return Clean(options)


_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0001\U000e0020-\U000e007f]"
)
# joiners mean something between letters of these scripts and between parts of an emoji, nowhere else
_JOINER = re.compile(
    "(?<![\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)
_SUSPICIOUS = re.compile("[\u0080-\u009f\u00c2-\u00c5\u00ce-\u00d1\u00d8-\u00e3\u00ef\u00f0\ufffd\u0192][\u0080-\u00bf\u0152-\u2122]|&[a-zA-Z#]\\w{1,8};")  # fmt: skip
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUN = re.compile(r"(?<=\S)[ \t]{2,}")
_AT_END = re.compile(r"[ \t]+(?=\n|\Z)")
_EMPTY = re.compile(r"\n{4,}")


class Clean:
    """Counts what each turn changed; documents of which nothing is left are dropped."""

    def __init__(self, options: CleanOptions) -> None:
        self.options = options
        try:
            self.lines = re.compile("|".join(f"(?:{pattern})" for pattern in (*BOILERPLATE, *options.patterns)))
        except re.error as error:
            raise UsageError(f"clean.patterns: {error.pattern!r} is no regular expression: {error}") from error

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        turns = [
            (name, turn)
            for name, turn, wanted in (
                ("mojibake", mended, self.options.mojibake),
                ("normal_form", self._normal, self.options.normal_form != "none"),
                ("invisible", without_invisible, self.options.invisible),
                ("white_space", tidied, self.options.white_space),
                ("boilerplate", self.without_boilerplate, self.options.boilerplate),
            )
            if wanted
        ]
        going = []
        for document in documents:
            for name, turn in turns:
                if name == "boilerplate" and document.derived:
                    continue
                before = document.text
                if rewrite(document, turn):
                    tally.change(document, name, before)
            if document.text and not document.text.isspace():
                going.append(document)
            else:
                tally.drop(document, "nothing_left")
        tally.keep(len(going))
        return going

    def _normal(self, text: str) -> str:
        form = self.options.normal_form
        if text.isascii() or form == "none" or unicodedata.is_normalized(form, text):
            return text
        return unicodedata.normalize(form, text)

    def without_boilerplate(self, text: str) -> str:
        """The text without lines that are nothing but boilerplate. The longest line looked at has 240 characters."""
        lines = text.split("\n")
        kept = [line for line in lines if not (4 < len(line) <= 240 and self._is_boilerplate(line))]
        return text if len(kept) == len(lines) else "\n".join(kept)

    def _is_boilerplate(self, line: str) -> bool:
        return self.lines.fullmatch(line.strip(" \t*#>-|•·").lower()) is not None


def mended(text: str) -> str:
    """ftfy, where something looks like a wrong decoding or an entity; its other fixes are turns of their own here."""
    if (text.isascii() and "&" not in text) or _SUSPICIOUS.search(text) is None:
        return text
    import ftfy

    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, fix_line_breaks=False,
        remove_terminal_escapes=False, remove_control_chars=False, normalization=None, explain=False,
        unescape_html="auto",
    )  # fmt: skip
    return ftfy.fix_text(text, config)


def without_invisible(text: str) -> str:
    """Without characters that nobody sees."""
    text = _INVISIBLE.sub("", text) if _INVISIBLE.search(text) else text
    return _JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def tidied(text: str) -> str:
    """One kind of line end and of space, no runs of them but for indentation."""
    if "\r" in text or "\f" in text or "\v" in text or not text.isascii():
        text = _LINE_ENDS.sub("\n", text)
        text = _SPACES.sub(" ", text)
    if "  " in text or "\t" in text:
        text = _RUN.sub(" ", text)
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        text = _AT_END.sub("", text)
    if "\n\n\n\n" in text:
        text = _EMPTY.sub("\n\n\n", text)
    return text.strip("\n")
