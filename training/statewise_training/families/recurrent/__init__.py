"""The recurrent families: rnn, lstm and gru."""
