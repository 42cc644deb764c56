"""Initializers, one per file."""
