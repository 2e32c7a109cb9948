"""Models in the layout of the Hugging Face Hub: a model folder with a README.md beside its files."""
