"""A run on disk: its directory, lock, log and provenance."""
