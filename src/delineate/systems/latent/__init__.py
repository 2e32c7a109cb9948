"""Systems that draw masks from a small latent."""
