"""Frequent events."""
