"""Protocols on masks: attention, segmentation and video."""
