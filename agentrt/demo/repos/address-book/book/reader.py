"""Read contacts from a CSV export."""

import csv


def read_contacts(path):
    """Return (name, email) pairs in the order of the file."""
    with open(path, encoding="latin-1", newline="") as file:
        rows = csv.DictReader(file, delimiter=";")
        return [(row["name"].strip(), row["email"].strip()) for row in rows]
