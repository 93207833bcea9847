"""Pairs of source and target: reading them, batches of them, and how many of them a model gets right."""
