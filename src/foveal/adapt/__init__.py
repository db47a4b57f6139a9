"""Which weights learn, how fast, and through what."""
