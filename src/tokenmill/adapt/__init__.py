"""Parameter-efficient fine-tuning: what is put beside a model's layers, trained, stored, switched, and folded in."""

from tokenmill.adapt.build import adapt, learning_rates, remove_adapter
from tokenmill.adapt.folder import load_adapter
from tokenmill.adapt.merge import check_mergeable, merge_adapter
from tokenmill.adapt.note import BaseNote, read_note
from tokenmill.adapt.places import switch_of
from tokenmill.adapt.save import adapter_state, save_adapter
from tokenmill.adapt.stack import check_kinds, stack_adapters
from tokenmill.adapt.virtual import virtual_ids

__all__ = [
    "BaseNote",
    "adapt",
    "adapter_state",
    "check_kinds",
    "check_mergeable",
    "learning_rates",
    "load_adapter",
    "merge_adapter",
    "read_note",
    "remove_adapter",
    "save_adapter",
    "stack_adapters",
    "switch_of",
    "virtual_ids",
]
