"""Alignment: reward models and what people say of answers. Preference objectives are values of ``train/objectives``."""
