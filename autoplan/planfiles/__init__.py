"""Plan files: a plan as text, read, compared, and put on a model that may have changed since."""
