"""Convolutions that compute something of their own, one per file."""
