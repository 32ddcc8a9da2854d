"""Logging. Everything goes to stderr, because stdout belongs to answers and ``--json``."""

from __future__ import annotations

import logging
import os
import sys

from tokenmill.core.errors import UsageError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_seen: set[tuple[str, str]] = set()


def get_logger(name: str) -> logging.Logger:
    """The logger for a module; pass ``__name__``."""
    return logging.getLogger(name)


def info_once(logger: logging.Logger, message: str) -> None:
    """Log `message` the first time it occurs in this process: for automatic choices, said once with their reason."""
    if (logger.name, message) not in _seen:
        _seen.add((logger.name, message))
        logger.info(message)


def setup_logging(level: str | None = None) -> None:
    """For the command line only: a library must not configure its host's logging. ``TOKENMILL_LOG`` sets the level.

    UsageError where it names none.
    """
    chosen = (level or os.environ.get("TOKENMILL_LOG", "").strip() or "WARNING").upper()
    if chosen not in LEVELS:
        raise UsageError(f"TOKENMILL_LOG is {chosen.lower()!r}; it takes {', '.join(LEVELS).lower()}")
    logging.basicConfig(stream=sys.stderr, level=chosen, format="%(levelname)s %(name)s: %(message)s")
