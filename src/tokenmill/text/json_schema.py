"""Whether a JSON value fits a schema, for verifiers of what models write (draft 2020-12 unless ``$schema`` says so).

Nothing is fetched for ``$ref``, patterns are matched in linear time. What may be written in the first place is
``grammar.py``'s affair; this says afterwards, of any schema, and in any order of keys.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from tokenmill.core.errors import ConfigError


class Schema:
    """A compiled schema; ConfigError where it is none."""

    def __init__(self, schema: Mapping[str, Any] | bool) -> None:
        self._validator = _compiled(json.dumps(schema))

    def problems(self, value: Any, *, most: int = 5) -> list[str]:
        """What is wrong with a value of Python's ``json``, ``place: what`` each; empty where it fits."""
        found = []
        for error in self._validator.iter_errors(value):
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            found.append(f"{place.lstrip('.') or 'value'}: {error.message}")
            if len(found) == most:
                break
        return found

    def fits(self, value: Any) -> bool:
        """Whether it has no problems."""
        return bool(self._validator.is_valid(value))


@functools.lru_cache(256)
def _compiled(schema: str) -> Any:
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(
            json.loads(schema), pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20), offline=True
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ConfigError(f"this is no JSON schema that can be held: {error}") from error
