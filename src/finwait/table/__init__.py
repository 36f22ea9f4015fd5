"""Columns: what a row of each table means, where each value comes from, and how to select and print them."""
