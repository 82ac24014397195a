"""Losses: one file a loss, each ending in ``SPECS``."""
