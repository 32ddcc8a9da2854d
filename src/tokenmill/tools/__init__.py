"""Functions that a model may call: their schemas, their processes, those that are built in."""
