"""The detection protocol: boxes and outlines of objects."""
