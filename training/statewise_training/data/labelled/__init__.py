"""Labelled sequences: reading them, and batches of them."""
