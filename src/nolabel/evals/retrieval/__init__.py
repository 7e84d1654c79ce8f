"""Protocols that rank images: retrieval of landmarks and copy detection."""
