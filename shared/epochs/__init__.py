"""Epochs: the identity of a log's history, raised where acknowledged history may have been lost or a repair changed it."""
