"""Findings → characters. Pure."""
