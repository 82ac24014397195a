"""Models, one file a family; see :mod:`zoo.registry`."""
