"""All techniques as one self-contained page."""
