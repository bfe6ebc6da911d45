"""Memory: the bytes alive at every moment of a step, and the fastest plan that fits in them."""
