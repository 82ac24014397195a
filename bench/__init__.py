"""Benchmarks: one file one question, ``main(quick, ...)`` each, all by the clock in :mod:`zoo.bench._timing`."""
