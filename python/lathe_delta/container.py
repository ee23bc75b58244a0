"""The delta file around the payloads: header, index, attachments, footer."""

import bisect
import dataclasses
import pathlib

from .cursor import Corrupt, Cursor
from .hashes import TILE, checksum64, hash128
from .payload import ELEMENT_SIZES

FOOTER = 128
MODES = {1: "sparse", 2: "dense", 3: "raw"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One file: how its bytes are cut into tiles and elements."""

    name: str
    size: int
    data_offset: int
    runs: tuple  # (end in bytes from data_offset, element type)

    def head_tiles(self):
        return -(-self.data_offset // TILE)

    def tile_count(self):
        return self.head_tiles() - (self.data_offset - self.size) // TILE

    def tile_range(self, tile):
        """Begin and end in the file."""
        head = self.head_tiles()
        if tile < head:
            return tile * TILE, min((tile + 1) * TILE, self.data_offset)
        begin = self.data_offset + (tile - head) * TILE
        return begin, min(begin + TILE, self.size)

    def tile_parts(self, tile):
        """The stretches of elements of one type in a tile: (element type, bytes), in order."""
        begin, end = self.tile_range(tile)
        if tile < self.head_tiles():
            return [(0, end - begin)]
        begin, end = begin - self.data_offset, end - self.data_offset
        parts, run_begin = [], 0
        for run_end, kind in self.runs:
            first, last = max(begin, run_begin), min(end, run_end)
            if first < last:
                size = ELEMENT_SIZES[kind]
                front = min(-(first - run_begin) % size, last - first)
                back = (last - first - front) % size
                parts += [(0, front), (kind, last - first - front - back), (0, back)]
            run_begin = run_end
        return [part for part in parts if part[1] > 0]


@dataclasses.dataclass(frozen=True)
class Tile:
    file: int
    tile: int
    mode: int
    offset: int  # of the payload in the delta
    size: int
    before: bytes
    after: bytes
    checksum: int


class Delta:
    """A delta file whose header, index and footer are sound. Raises Corrupt, naming what is not."""

    def __init__(self, path):
        try:
            self._read(pathlib.Path(path).read_bytes())
        except Corrupt as error:
            raise Corrupt(f"{path}: {error}") from None

    def _read(self, data):
        self.data = memoryview(data)
        if len(data) < FOOTER or data[-8:] != b"LATHEend":
            raise Corrupt("not a delta, or cut off: its last bytes are not a footer")
        footer = self.data[-FOOTER:]
        in_footer = Cursor(footer)
        tiles, attachments, index_at, size = in_footer.fields("QQQQ")
        self.from_root, self.to_root = bytes(in_footer.take(32)), bytes(in_footer.take(32))
        header_checksum, index_checksum, footer_checksum = in_footer.fields("QQQ")
        if checksum64(footer[:112]) != footer_checksum:
            raise Corrupt("its footer is damaged")
        if size != len(data) or index_at > size - FOOTER:
            raise Corrupt(f"it has {len(data)} bytes, and its footer says {size}")

        payloads_at = self._read_header(Cursor(self.data[: len(data) - FOOTER]), header_checksum)
        index = self.data[index_at : size - FOOTER]
        if checksum64(index) != index_checksum:
            raise Corrupt("its index is damaged")
        end = self._read_index(Cursor(index), tiles, attachments, payloads_at)
        if end != index_at:
            raise Corrupt("its index does not account for every byte of it")

    def _read_header(self, cursor, checksum):
        if cursor.take(8) != b"LATHEdlt":
            raise Corrupt("not a delta: its first bytes are others")
        self.format, size = cursor.fields("II")
        if self.format not in (1, 2):
            raise Corrupt(f"format version {self.format} is unknown")
        if not 56 <= size <= len(cursor.data):
            raise Corrupt("its header is damaged")
        header, stored = cursor.data[: size - 8], Cursor(cursor.data[size - 8 : size]).fields("Q")
        if checksum64(header) != stored or stored != checksum:
            raise Corrupt("its header is damaged")
        cursor = Cursor(header)
        cursor.take(16)
        self.from_version, self.to_version, self.time_ms = cursor.fields("qqq")
        count, _ = cursor.fields("II")
        self.files = [self._read_layout(cursor) for _ in range(count)]
        names = [layout.name for layout in self.files]
        if names != sorted(set(names), key=str.encode) or not cursor.done():
            raise Corrupt("its list of files contradicts itself")
        return size

    @staticmethod
    def _read_layout(cursor):
        name, (size, data_offset, count) = cursor.text(), cursor.fields("QQI")
        runs = tuple(cursor.fields("QB") for _ in range(count))
        ends = [end for end, _ in runs]
        last = ends[-1] if ends else 0
        if data_offset > size or last != size - data_offset or ends != sorted(set(ends)) or any(k not in ELEMENT_SIZES for _, k in runs):
            raise Corrupt(f"the layout of {name} contradicts itself")
        return Layout(name, size, data_offset, runs)

    def _read_index(self, cursor, tiles, attachments, offset):
        self.tiles, self.attachments, file, number = [], {}, 0, 0
        for _ in range(tiles):
            step, tile = cursor.varint(), cursor.varint()
            if step == 0 and tile == 0 and self.tiles:
                raise Corrupt("the tiles of its index do not ascend")
            file, number = file + step, tile if step else number + tile
            size, mode = cursor.varint(), cursor.fields("B")
            before, after, checksum = bytes(cursor.take(16)), bytes(cursor.take(16)), cursor.fields("Q")
            if file >= len(self.files) or number >= self.files[file].tile_count() or mode not in MODES:
                raise Corrupt("its index names a tile that its files do not have")
            self.tiles.append(Tile(file, number, mode, offset, size, before, after, checksum))
            offset += size
        for _ in range(attachments):
            name, size, checksum = cursor.text(), cursor.fields("Q"), bytes(cursor.take(16))
            if name in self.attachments:
                raise Corrupt(f"it has two attachments {name}")
            self.attachments[name] = (offset, size, checksum)
            offset += size
        if not cursor.done():
            raise Corrupt("there are bytes after its index")
        return offset

    def describe(self, tile):
        return f"{self.files[tile.file].name} tile {tile.tile}"

    def payload(self, tile):
        data = self.data[tile.offset : tile.offset + tile.size]
        if checksum64(data) != tile.checksum:
            raise Corrupt(f"the delta of {self.describe(tile)} is damaged")
        return data

    def attachment(self, name):
        offset, size, checksum = self.attachments[name]
        data = self.data[offset : offset + size]
        if hash128(data) != checksum:
            raise Corrupt(f"attachment {name} is damaged")
        return bytes(data)

    def find(self, file, tile):
        """The changed tile, or None."""
        at = bisect.bisect_left(self.tiles, (file, tile), key=lambda t: (t.file, t.tile))
        found = self.tiles[at] if at < len(self.tiles) else None
        return found if found and (found.file, found.tile) == (file, tile) else None

    def verify(self):
        """Every checksum that open did not look at."""
        for tile in self.tiles:
            self.payload(tile)
        for name in self.attachments:
            self.attachment(name)
