"""Clicks and scribbles: the network that reads them, and people who make them."""
