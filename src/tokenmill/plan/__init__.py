"""Answers before money is spent: does it fit, on what, how fast, for how much, which model. No GPU, no torch needed."""
