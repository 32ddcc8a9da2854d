"""A corpus with known answers: what is planted, and how well each curation step finds it."""
