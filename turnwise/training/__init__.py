"""From a configuration to a trained policy: the loop, what guards it, and what comes before it."""
