"""Mutations: every guard taken away, one at a time, from a copy of the tree; some test must then fail."""
