"""Success on fixed panels, and runs against each other."""
