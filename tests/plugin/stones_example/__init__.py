"""Techniques for stones, one file each, in the folder of its kind."""
