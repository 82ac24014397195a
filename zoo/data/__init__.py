"""Data sets, one file a set; see :mod:`zoo.registry`."""
