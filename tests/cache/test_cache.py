"""The cache notices what is broken and makes it anew; what is sound it leaves alone. Standard library only, as the cache itself."""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
sys.dont_write_bytecode = True
import lathe_cache  # noqa: E402


class Cache(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name) / "entry"
        self.made = 0
        self.ensure()

    def make(self, folder):
        self.made += 1
        (folder / "sub").mkdir(parents=True)
        (folder / "sub/data").write_bytes(b"0123456789")

    def ensure(self, key="v1", every_byte=False):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            lathe_cache.ensure(self.folder, key, self.make, every_byte)
        self.assertEqual((self.folder / "sub/data").read_bytes(), b"0123456789")
        return said.getvalue()

    def test_what_is_sound_is_not_made_again(self):
        self.ensure()
        self.ensure(every_byte=True)
        self.assertEqual(self.made, 1)

    def test_breakages_are_noticed_named_and_repaired(self):
        data, seal = self.folder / "sub/data", self.folder.with_name("entry.json")
        breakages = {
            "9 bytes instead of 10": lambda: data.write_bytes(b"012345678"),
            "was changed": lambda: data.write_bytes(b"0123456788"),
            "data is missing": data.unlink,
            "entry.json is missing": seal.unlink,  # made half-way: the seal comes last
            "seal cannot be read": lambda: seal.write_text("{"),
        }
        for made, (named, break_it) in enumerate(breakages.items(), 2):
            with self.subTest(named):
                break_it()
                self.assertIn(named, self.ensure())
                self.assertEqual(self.made, made)

    def test_a_flipped_byte_behind_an_old_time_stamp_is_found_by_reading_all(self):
        data = self.folder / "sub/data"
        stat = data.stat()
        data.write_bytes(b"012345678X")
        os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.assertIn("was changed", self.ensure(every_byte=True))

    def test_another_version_is_made_anew(self):
        self.assertIn("another version", self.ensure(key="v2"))

    def test_a_maker_that_fails_leaves_nothing_that_looks_made(self):
        def fail(folder):
            self.make(folder)
            raise SystemExit("no network")

        lathe_cache.discard(self.folder)
        with self.assertRaises(SystemExit):
            lathe_cache.ensure(self.folder, "v1", fail)
        self.assertIsNotNone(lathe_cache.fault(self.folder, "v1"))
        self.ensure()


if __name__ == "__main__":
    unittest.main()
