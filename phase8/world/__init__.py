"""The invented world: facts, training text and benchmark problems, all generated from a seed."""
