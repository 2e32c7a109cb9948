"""What learns, shared by the systems."""
