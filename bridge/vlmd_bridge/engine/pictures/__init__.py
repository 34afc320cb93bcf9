"""From pixels to embeddings, on a CPU without MLX."""
