"""C4's rules: lines that end as sentences do, pages with enough of them, no code, no boilerplate.

Source: Raffel et al. 2020 (JMLR 21, section 2.2) and its code in tensorflow_datasets; decisions as datatrove's
``C4QualityFilter`` makes them on the same sentences. The list of bad words is the step ``toxicity``.
"""

from __future__ import annotations

import re

from tokenmill.config.parts import Count
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.step import Context, Document, Tally

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
ENDS = (".", "?", "!", '"', "'")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SENTENCE = re.compile("[.!?]+[\"')\\]\u201d\u2019]*(?=\\s|$)")


class C4Options(FilterOptions):
    """Which rules; ``null`` turns a limit off. Lines are cut from plain documents, not from conversations and not under
    ``tag``."""

    min_sentences: Count | None = 5
    """Fewer in the lines that stay drop the document."""
    min_words_per_line: Count | None = 3
    """Shorter lines are cut."""
    max_word_length: Count | None = 1000
    """Lines with a longer word, in characters, are cut."""
    terminal_punctuation: bool = True
    """Cut lines that end otherwise than with ``. ? ! " '``, or with an ellipsis."""
    citations: bool = True
    """Cut ``[12]``, ``[edit]`` and ``[citation needed]`` out of lines."""
    lorem_ipsum: bool = True
    """Drop documents with that phrase."""
    javascript: bool = True
    """Cut lines with that word."""
    curly_bracket: bool = True
    """Drop documents with ``{``."""
    policy: bool = True
    """Cut lines about cookies, privacy policies and terms of use."""


def build(options: C4Options, context: Context) -> C4:
    """The step."""
    return C4(options)


class C4:
    """Cuts lines and drops documents."""

    def __init__(self, options: C4Options) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        verdicts = {}
        for document in judged(documents, self.options.languages):
            reason, lines = self.lines(document.text)
            if reason is not None:
                verdicts[document.id] = reason
                continue
            text = "\n".join(lines).strip()
            if not document.derived and not self.options.tag and text != document.text:
                before, document.text = document.text, text
                tally.change(document, "lines", before, max(1, before.count("\n") + 1 - len(lines)))
        return settle(documents, verdicts, tally, tag=self.options.tag)

    def lines(self, text: str) -> tuple[str | None, list[str]]:
        """Why the text is dropped (None: it stays), and its lines that stay."""
        o = self.options
        lower = text.lower()
        lorem = o.lorem_ipsum and "lorem ipsum" in lower
        script = o.javascript and "javascript" in lower
        policy = o.policy and any(phrase in lower for phrase in POLICY)
        curly = o.curly_bracket and "{" in text
        citations = o.citations and "[" in text
        kept: list[str] = []
        sentences = 0
        for line in text.splitlines():
            line = line.strip()
            whole = line
            if citations:
                line = CITATION.sub("", line)
            if o.terminal_punctuation and (not line.endswith(ENDS) or line.endswith("...")):
                continue
            if o.max_word_length is not None and len(whole) > o.max_word_length < max(map(len, whole.split())):
                continue
            if o.min_words_per_line is not None and len(whole.split(None, o.min_words_per_line)) < o.min_words_per_line:
                continue
            if lorem or script or policy:
                small = line.lower()
                if lorem and "lorem ipsum" in small:
                    return "lorem_ipsum", []
                if script and "javascript" in small:
                    continue
            if curly and "{" in line:
                return "curly_bracket", []
            if policy and any(phrase in small for phrase in POLICY):
                continue
            if o.min_sentences is not None and sentences < o.min_sentences:
                sentences += count_sentences(line)
            kept.append(line)
        if o.min_sentences is not None and sentences < o.min_sentences:
            return "too_few_sentences", []
        return None, kept


def count_sentences(line: str) -> int:
    """Sentences of one line: marks that end one before white space or the end, and a rest without such a mark."""
    ends = 0
    last = 0
    for found in _SENTENCE.finditer(line):
        ends, last = ends + 1, found.end()
    return ends + (not line[last:].isspace() and last < len(line))
