"""Recipes included in zoo, one TOML file per run."""
