"""The demo world: rendered pictures with labels, masks and clips."""
