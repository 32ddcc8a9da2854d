"""Anthropic's Messages API, so that its clients (Claude Code among them) can talk to the models served here.

Beyond the answers themselves: which stop sequence ended one, how many tokens came out of the prefix cache, tools that
must be used, and token counts without an answer.
"""

from tokenmill.serve.anthropic.errors import error_body
from tokenmill.serve.anthropic.messages import router

__all__ = ["error_body", "router"]
