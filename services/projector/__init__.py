"""The projector: log in, read models out. Owns shards by lease and folds each feed exactly once in effect."""
