"""Fill the template."""

import pathlib

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def render(name):
    """Return the note for `name`."""
    text = (TEMPLATES / "note.txt").read_text(encoding="utf-8")
    return text.format(name=name).rstrip("\n")
