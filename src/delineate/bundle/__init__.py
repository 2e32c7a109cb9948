"""Models as MONAI bundles: folders that `monai.bundle` runs. Of a bundle only the model folder in it is ever read."""
