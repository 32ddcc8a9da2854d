"""Families: one short file each, and the way from files to a model.

``load_model`` and ``load_tokenizer`` are the entry points; a family file holds a configuration mapping and a table of
weight names, nothing that ``nn`` already does.
"""

from tokenmill.models.load import FAMILIES, Model, load_model, load_tokenizer, read_any_config, read_config

__all__ = ["FAMILIES", "Model", "load_model", "load_tokenizer", "read_any_config", "read_config"]
