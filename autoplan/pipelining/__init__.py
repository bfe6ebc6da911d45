"""Pipelines: where a model is cut, in which order its stages run, and how long that takes."""
