"""Scores for masks, answers and descriptions."""
