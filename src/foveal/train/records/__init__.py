"""What is written down of a run: measures, incidents, trackers."""
