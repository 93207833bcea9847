"""Other programs that decode the same weights, in a virtual environment of their own (`make bench-peers`).

The modules here run there: beside the peer they import NumPy and the two modules of the benchmark that need no more.
"""
