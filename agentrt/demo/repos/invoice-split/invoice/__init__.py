"""Bills shared between people."""
