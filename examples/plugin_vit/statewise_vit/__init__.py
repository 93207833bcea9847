"""A Vision Transformer for Statewise."""
