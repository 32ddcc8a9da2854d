"""Watching a run: files, trackers, screen, statistics, profile. `watchers.watchers(recipe)` puts them together."""
