"""Answers, scores and pages about them."""
