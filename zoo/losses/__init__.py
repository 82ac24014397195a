"""Losses, one file a loss; see :mod:`zoo.registry`."""
