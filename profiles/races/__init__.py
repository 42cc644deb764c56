"""Optimizers against each other, on problems of known outcome and on digits; profiles of races are YAML files."""
