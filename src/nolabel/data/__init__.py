"""Images in: which files there are, their pixels, and the order in which training sees them."""
