"""Sandboxes: where tool calls run, each in a cgroup of its own."""
