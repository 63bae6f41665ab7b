"""agentrt: serve AI agents as whole programs on one machine."""

__version__ = "0.1.0"
