"""Prompts -> answers: many sequences decoded together, behind prefixes that are kept once."""
