"""Regularizers and projections of weights, one per file."""
