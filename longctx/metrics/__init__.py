"""Scores of predictions against references, one file a family."""
