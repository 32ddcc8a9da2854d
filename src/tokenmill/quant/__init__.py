"""Number formats and quantisers: a model in, a model out."""
