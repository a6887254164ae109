"""Scores and pictures of finished runs."""
