"""The writer: HTTP commands in, positions out. Decides against the log, appends to it, and touches nothing else."""
