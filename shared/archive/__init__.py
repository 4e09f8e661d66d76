"""The archive: a feed's history outside its stream, as segments in a place or as one file, and back from there."""
