"""Sorted feeds."""
