"""Collecting preferences from people: what is shown, what is written down, how far raters can be trusted."""

from tokenmill.align.label.items import Item, read_items
from tokenmill.align.label.log import Label, LabelLog, pairs_of
from tokenmill.align.label.measures import Agreement, PositionBias, agreement, position_bias

__all__ = [
    "Agreement",
    "Item",
    "Label",
    "LabelLog",
    "PositionBias",
    "agreement",
    "pairs_of",
    "position_bias",
    "read_items",
]
