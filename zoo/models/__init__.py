"""Models, one file per family; see :mod:`zoo.registry`."""
