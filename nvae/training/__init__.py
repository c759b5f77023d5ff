"""Training: the trainer and its step, the loop around it, schedules, metrics, loggers and pictures."""
