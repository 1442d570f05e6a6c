"""Files: the door for untrusted ones, durable writes, locks, and small JSON files."""
