"""The descent: baseline, stages, retries, result; and the way from disk to disk."""
