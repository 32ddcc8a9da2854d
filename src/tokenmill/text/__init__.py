"""Text to token ids and back: tokenizers of every kind, chat templates, streaming decoding, stop strings."""
