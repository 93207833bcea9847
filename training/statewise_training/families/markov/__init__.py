"""The first-order Markov model."""
