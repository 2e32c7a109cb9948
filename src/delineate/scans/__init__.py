"""Images with their geometry: read, prepared, put on the working grid, written."""
