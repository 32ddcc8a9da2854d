"""The blocks that every model is made of. A family in ``models`` only says how they are put together."""
