"""The mathematics of diffusion: noise levels, samplers, what is diffused."""
