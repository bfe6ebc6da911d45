"""Recomputation: blocks that keep nothing for backward, which runs their forward a second time."""
