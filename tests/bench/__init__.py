"""Figures, never verdicts: `python -m tests.bench` prints them with the machine and the commit. Nothing here is a test."""
