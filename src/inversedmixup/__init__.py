"""Text data augmentation by inverting mixed sentence embeddings (arXiv 2601.21543)."""
