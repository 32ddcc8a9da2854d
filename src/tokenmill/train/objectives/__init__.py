"""What is minimised: one small file an objective. See :mod:`tokenmill.train.objectives.base` for what one is."""
