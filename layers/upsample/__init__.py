"""Rearrangements of channels into positions and back, and what surrounds them, one per file."""
