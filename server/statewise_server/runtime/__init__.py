"""Tensors only: sessions, the state pool, and the runner that steps a bundle's graphs."""
