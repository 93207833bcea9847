"""The autoregressive family: predictions from a fixed window of the last items."""
