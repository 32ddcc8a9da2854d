"""Generation. Sees token ids, never text.

``engine`` serves many requests with a paged cache: request, block pool and scheduler are plain Python, runner and
sampler touch tensors. ``generate`` is the plain loop with a cache a sequence, the engine's slow twin in the tests.
"""
