"""Columns → findings. Pure."""
