"""Other programs that decode the same weights, in a virtual environment of their own (`make bench-peers`).

These modules run in that environment: beside the peer they import only NumPy and two benchmark modules.
"""
