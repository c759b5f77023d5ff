"""Import checkpoints of other projects: one file per project, one shared walk through our network, strict loading."""
