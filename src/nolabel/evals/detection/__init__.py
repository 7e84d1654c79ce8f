"""Object detection: boxes and masks of objects."""
