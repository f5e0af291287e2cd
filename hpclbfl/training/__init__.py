"""A run in one process: set-up, state, steps, loop, evaluation, and the session around them."""
