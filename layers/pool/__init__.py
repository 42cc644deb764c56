"""Pooling: what a layer gathers from many positions, for a vector, a map or a gate."""
