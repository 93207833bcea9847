"""The encoder-decoder families: a Transformer with cross-attention, LSTM and GRU with attention or with none."""
