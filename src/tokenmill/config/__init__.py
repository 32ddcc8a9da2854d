"""Typed recipes: Hydra composes a YAML file and a person's overrides, pydantic checks the result.

`recipe` declares every field once; `compose` makes a recipe and knows where each value came from.
"""
