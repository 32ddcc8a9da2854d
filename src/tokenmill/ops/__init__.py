"""Operations: one file each, a plain torch reference plus faster backends behind one signature.

``attention``, ``rms_norm``, ``apply_rope`` … are :class:`~tokenmill.ops.registry.Op` objects: called like functions,
they pick the first backend that can do the call, log that choice once, and can be forced (``use_backend``).
"""
