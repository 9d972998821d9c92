"""What a run records: console lines, metrics.jsonl, other trackers."""
