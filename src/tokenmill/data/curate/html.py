"""The step ``html``: the main text of web pages.

resiliparse (Bevendorff et al. 2018) finds the main content by rules over its own parser and does what trafilatura does
some twenty times as fast; both were tried on the same pages (docs/data.md).
"""

from __future__ import annotations

from tokenmill.config.parts import Count, Part
from tokenmill.core.errors import UsageError
from tokenmill.data.curate.step import Context, Document, Tally


class HtmlOptions(Part):
    """What is kept of a page."""

    main_content: bool = True
    """Only the article, not navigation, side bars and footers."""
    comments: bool = False
    """Keep sections of readers' comments too."""
    links: bool = False
    """Write the address behind each link."""
    images: bool = False
    """Write the descriptions of images."""
    min_characters: Count = 1
    """Pages with less text are dropped."""


def build(options: HtmlOptions, context: Context) -> Html:
    """The step. UsageError: resiliparse is not installed."""
    try:
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError as error:
        raise UsageError('the step html needs resiliparse: pip install "tokenmill[data]"') from error
    return Html(options)


class Html:
    """Turns documents whose ``content_type`` is HTML into text; others go on as they are. The title goes to
    ``meta["title"]`` unless there is one."""

    def __init__(self, options: HtmlOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        going = []
        for document in documents:
            if "html" not in str(document.meta.get("content_type", "")):
                going.append(document)
                continue
            before = document.text
            text, title = self.extract(before)
            if len(text) < self.options.min_characters:
                tally.drop(document, "no_main_text")
                continue
            document.text = text
            del document.meta["content_type"]
            if title:
                document.meta.setdefault("title", title)
            tally.change(document, "extracted", before)
            going.append(document)
        tally.keep(len(going))
        return going

    def extract(self, page: str) -> tuple[str, str]:
        """Text and title of a page; both are empty where nothing is found."""
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree

        tree = HTMLTree.parse(page)
        if tree is None or tree.body is None:
            return "", ""
        text = extract_plain_text(
            tree, main_content=self.options.main_content, comments=self.options.comments, links=self.options.links,
            alt_texts=self.options.images, list_bullets=True, preserve_formatting=True,
        )  # fmt: skip
        return text.strip(), (tree.title or "").strip()
