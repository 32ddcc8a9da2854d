"""Curation: raw files in, training data out, by a recipe of steps.

`step` says what a step is, `steps` lists them, `pipeline` runs a recipe of them.
"""
