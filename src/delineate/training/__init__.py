"""How networks learn: losses, the loop, checkpoints."""
