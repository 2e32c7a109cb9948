"""How far answers can be believed."""
