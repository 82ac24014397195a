"""Measured tables (CSV), written by commands only."""
