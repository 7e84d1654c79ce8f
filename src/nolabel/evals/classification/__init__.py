"""Protocols on labelled images: k-NN, linear, low-shot, fine-tuning."""
