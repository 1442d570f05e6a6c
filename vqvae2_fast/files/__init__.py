"""Files: opening untrusted ones, durable writes, locks, and small JSON files."""
