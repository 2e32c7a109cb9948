"""A trained system adapted by a few labelled scans."""
