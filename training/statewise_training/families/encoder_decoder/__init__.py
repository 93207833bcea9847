"""The encoder-decoder families: a Transformer with cross-attention; LSTM and GRU with or without attention."""
