"""Weight reparametrizations, one per file."""
