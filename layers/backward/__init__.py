"""Rules of back-propagation, one per file."""
