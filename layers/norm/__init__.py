"""Activation normalizations: statistics of activations, subtracted and divided out."""
