"""Side-by-side measurements of the kit and of what people otherwise use."""
