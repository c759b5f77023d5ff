"""Training: the run and its step, the loop around it, and what it leaves behind."""
