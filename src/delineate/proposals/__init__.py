"""Several masks of a target: fused, ordered, described."""
