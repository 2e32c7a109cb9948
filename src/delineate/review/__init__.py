"""A local page on which people look at proposals, pick, mend and save them."""
