"""Where the last number is kept."""


class MemoryStore:
    """Keeps the number in memory. Not safe for threads by itself."""

    def __init__(self, number=0):
        self.number = number

    def load(self):
        return self.number

    def save(self, number):
        self.number = number
