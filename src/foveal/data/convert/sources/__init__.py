"""Folders, archives, tables and rows of somebody else -> entries and plain values."""
