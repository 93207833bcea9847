"""The autoregressive family: the last items, and nothing before them."""
