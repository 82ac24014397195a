"""Tools that inspect convolutions and networks: one file per tool, each ending in a ``command`` with its options; no torch at the top."""
