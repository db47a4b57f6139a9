"""A run folder -> its page, and a page of several runs beside each other."""
