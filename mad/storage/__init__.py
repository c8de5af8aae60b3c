"""The outputs folder: files, locks, fingerprints, records and trained networks on disk."""
