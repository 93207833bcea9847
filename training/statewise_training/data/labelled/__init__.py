"""Labelled sequences: reading them, batches of them, and figures of what a model says of them."""
