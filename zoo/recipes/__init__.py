"""Recipes that come with zoo, one TOML file a run."""
