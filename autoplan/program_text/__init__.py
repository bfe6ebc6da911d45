"""Emitted programs as Python files: one for every distinct program of a rank, readable and run."""
