"""16-bit floats: what no other codec encodes."""
