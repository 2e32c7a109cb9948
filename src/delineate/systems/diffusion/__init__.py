"""Systems that draw masks by diffusion."""
