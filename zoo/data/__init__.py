"""Data sets, one file per set; see :mod:`zoo.registry`."""
