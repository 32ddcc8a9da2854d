"""Measures of a model: figures that can be repeated and that compare with other tools'."""
