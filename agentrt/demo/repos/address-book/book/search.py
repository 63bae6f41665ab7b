"""Find contacts by a part of their name."""


def key(text):
    """Return what two spellings of the same name have in common."""
    return text.lower()


def find(contacts, text):
    """Return the contacts whose name contains `text`, whatever the case."""
    return [contact for contact in contacts if key(text) in key(contact[0])]
