"""Cherry-picking: the rules, the session, the two views, and the file that reproduces a selection."""
