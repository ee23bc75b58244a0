"""Reads Lathe's delta files without Lathe: written from docs/formats/delta.md, to show that the page is enough.

Delta reads and checks a file, decode_payload turns one tile into its other state, apply_to_directory a whole directory.
Needs numpy, xxhash and blake3. One core at a few million changed weights per second: for judging, not for daily use.
"""

from .container import Corrupt, Delta
from .directory import Conflict, apply_to_directory, directory_root
from .payload import decode_payload

__all__ = ["Conflict", "Corrupt", "Delta", "apply_to_directory", "decode_payload", "directory_root"]
