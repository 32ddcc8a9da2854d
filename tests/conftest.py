"""Puts this folder on the import path, so that tests share ``fakes``, whether or not the tests are a package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
