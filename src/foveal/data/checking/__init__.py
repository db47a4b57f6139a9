"""What is wrong with a user's data, before a run meets it."""
