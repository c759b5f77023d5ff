"""Import checkpoints of other projects: one file per project, one shared key map of our network, strict loading."""
