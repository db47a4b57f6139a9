"""Batches to a trained model; knows no evaluation."""
