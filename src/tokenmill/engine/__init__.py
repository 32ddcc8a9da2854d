"""Generation. Sees token ids, never text.

``generate`` is the plain loop with a cache a sequence: short, right, the twin that faster engines are tested against.
"""
