"""Pack src/ into one runnable file: python3 make_zip.py OUT.pyz"""

import pathlib
import sys
import zipapp

ROOT = pathlib.Path(__file__).resolve().parent


def wanted(path):
    """Say whether a file of src/ belongs into the archive."""
    return path.suffix == ".py"


def main(target):
    zipapp.create_archive(ROOT / "src", target, filter=wanted)


if __name__ == "__main__":
    main(sys.argv[1])
