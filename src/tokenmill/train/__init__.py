"""Training: one loop for every objective, adapter and optimiser. ``tokenmill.train(recipe)`` is the way in."""
