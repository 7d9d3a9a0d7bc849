"""What is known of models' configurations, whatever their architecture."""

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""The names under which `config.json` tells the longest sequence that a model has positions for, in tokens."""
