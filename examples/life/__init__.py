"""The stages of `make demo`, a file for each part of a model's life."""
