"""The published recipe: its tasks, and the rows of its tables."""
