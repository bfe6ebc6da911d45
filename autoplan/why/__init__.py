"""Why: a plan asked again, under other choices, hardware, batches and memory limits."""
