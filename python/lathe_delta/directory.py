"""A directory of files and the state that it is in."""

import pathlib

from .container import Corrupt
from .hashes import hash_tile, root
from .payload import decode_payload


class Conflict(Exception):
    """The directory is in neither state of the delta. The message names the file and tile."""


def _tiles(layout, data):
    return [hash_tile(data[slice(*layout.tile_range(tile))]) for tile in range(layout.tile_count())]


def directory_root(layouts, folder):
    """The root of the files in a folder, cut as `layouts` (of a delta) say."""
    states = []
    for layout in layouts:
        data = memoryview((pathlib.Path(folder) / layout.name).read_bytes())
        if len(data) != layout.size:
            raise Conflict(f"{layout.name} has {len(data)} bytes, the delta is of one of {layout.size}")
        states.append((layout, _tiles(layout, data)))
    return root(states)


def other_side(delta, tile, known, forward=True):
    """The tile's bytes in the other state, checked. Bytes that are in that state already come back as they are."""
    left, reached = (tile.before, tile.after) if forward else (tile.after, tile.before)
    found = hash_tile(known)
    if found == reached:
        return bytes(known)
    if found != left:
        raise Conflict(f"{delta.describe(tile)} has different bytes from those the delta was made from")
    try:
        out = decode_payload(delta.files[tile.file].tile_parts(tile.tile), known, delta.payload(tile), forward, delta.format)
    except Corrupt as error:
        raise Corrupt(f"{delta.describe(tile)}: {error}") from None
    if hash_tile(out) != reached:
        raise Corrupt(f"the delta of {delta.describe(tile)} does not produce the bytes that it promises")
    return out


def apply_to_directory(delta, folder, forward=True):
    """Brings the files of `folder` over the delta and checks the root that they then have. Nothing is written unless
    everything fits. Not safe against crashes: meant for a copy."""
    changed, states = {}, []
    for number, layout in enumerate(delta.files):
        path = pathlib.Path(folder) / layout.name
        data = bytearray(path.read_bytes())
        if len(data) != layout.size:
            raise Conflict(f"{layout.name} has {len(data)} bytes, the delta is of one of {layout.size}")
        for tile in (t for t in delta.tiles if t.file == number):
            begin, end = layout.tile_range(tile.tile)
            data[begin:end] = other_side(delta, tile, bytes(data[begin:end]), forward)
        states.append((layout, _tiles(layout, memoryview(data))))
        changed[path] = data
    if root(states) != (delta.to_root if forward else delta.from_root):
        raise Conflict("the directory is of another state: a tile that the delta does not change differs")
    for path, data in changed.items():
        path.write_bytes(data)
