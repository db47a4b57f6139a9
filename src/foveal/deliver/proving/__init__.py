"""Whether a written folder is the run that it came from."""
