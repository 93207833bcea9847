"""The Transformer decoder."""
