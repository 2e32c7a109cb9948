"""A text-to-image model and the control that steers it."""
