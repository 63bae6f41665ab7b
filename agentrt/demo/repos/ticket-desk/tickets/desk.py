"""A desk that several threads take numbers from."""


class Desk:
    """Numbers start after the one in the store and are given out once each."""

    def __init__(self, store):
        self.store = store

    def issue(self):
        """Return the next number."""
        number = self.store.load() + 1
        self.store.save(number)
        return number
