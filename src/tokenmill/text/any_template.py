"""A chat template in either language: Jinja, as models bring it, or Go's, as Ollama's Modelfiles write it."""

from __future__ import annotations

from tokenmill.text.chat_template import ChatTemplate
from tokenmill.text.go_template import GoTemplate, looks_like_go


def check_template(source: str) -> None:
    """Raise TemplateError if this could never render: a Modelfile's mistake is said when the model is made."""
    GoTemplate(source) if looks_like_go(source) else ChatTemplate(source)
