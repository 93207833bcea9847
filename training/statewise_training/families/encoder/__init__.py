"""The encoders: families that read a whole sequence bidirectionally and predict labels, an embedding or a value."""
