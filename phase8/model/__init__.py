"""What comes in: a source model, its tensors by name, text, importance, latency."""
