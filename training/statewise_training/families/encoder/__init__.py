"""The encoders: families that read a whole sequence, both ways, and give labels, an embedding or a value."""
