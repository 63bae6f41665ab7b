"""LoRA adapters: read from PEFT's layout, several of them in one batch beside turns with none.

``config`` and ``segments`` are pure. Nothing here knows turns, scheduling or HTTP.
"""
