"""Variants in few bits against the float32 graphs that they were made of, and NumPy's statement of the rounding."""
