"""Pairs of source and target: reading them, and batches of them."""
