"""Examples on disk to batches; knows no model."""
