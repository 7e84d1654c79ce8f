"""nolabel: pre-train vision backbones on images without labels."""

__version__ = "0.1.0"
