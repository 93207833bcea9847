"""Answers of the real engine, as a client receives them, against the PyTorch reference and the rules in NumPy."""
