"""Tasks: what a model is asked, how its answers are scored, and figures with standard errors that can be repeated."""
