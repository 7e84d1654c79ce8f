"""Protocols on labelled images: k-NN, linear, low-shot and fine-tuning."""
