"""Verify: what stands in Redis and in the archive against a fresh fold of the log.

`refold` folds into `scratch`, a table of its own outside Redis; `generation`, `write_side` and `archived` compare, each with
its own side of the fold; `feed` puts them together. Nothing here writes to the server.
"""
