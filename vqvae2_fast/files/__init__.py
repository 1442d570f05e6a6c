"""Files: durable writes, locks, and small JSON files read with distrust."""
