import pathlib
import subprocess
import sys
import tempfile
import unittest
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*argv, cwd):
    return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=30)


class ZipTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.target = self.folder / "note.pyz"

    def build(self):
        done = run(ROOT / "make_zip.py", self.target, cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_checkout_works(self):
        done = run(ROOT / "src", "Ada", cwd=self.folder)
        self.assertEqual(done.stdout, "Dear Ada,\nthank you for the cake.\n", done.stderr)

    def test_archive_holds_the_template(self):
        self.build()
        with zipfile.ZipFile(self.target) as archive:
            self.assertIn("notes/templates/note.txt", archive.namelist())

    def test_archive_holds_no_bytecode(self):
        cache = ROOT / "src" / "notes" / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / "left.over.pyc").write_bytes(b"")
        self.build()
        with zipfile.ZipFile(self.target) as archive:
            self.assertFalse([name for name in archive.namelist() if name.endswith(".pyc")])

    def test_archive_runs(self):
        self.build()
        done = run(self.target, "Ada", cwd=self.folder)
        self.assertEqual(done.stdout, "Dear Ada,\nthank you for the cake.\n", done.stderr)


if __name__ == "__main__":
    unittest.main()
