"""Hashes of tiles, states and parts of the file ("Hashes" of the format page)."""

import struct

import blake3
import xxhash

BLOCK = 4096
BLOCKS = 512
TILE = BLOCK * BLOCKS


def checksum64(data):
    return xxhash.xxh3_64_intdigest(data)


def hash128(data):
    """As stored: the low word first. The library's digest is big-endian."""
    return xxhash.xxh3_128_digest(data)[::-1]


ZERO_BLOCK = hash128(bytes(BLOCK))


def hash_tile(data):
    whole, rest = divmod(len(data), BLOCK)
    hashes = [hash128(data[i * BLOCK : (i + 1) * BLOCK]) for i in range(whole)]
    if rest:
        hashes.append(hash128(bytes(data[whole * BLOCK :]) + bytes(BLOCK - rest)))
    hashes += [ZERO_BLOCK] * (BLOCKS - len(hashes))
    return hash128(b"".join(hashes))


def root(files):
    """files: (layout, tile hashes), ascending by name."""
    total = blake3.blake3()
    for layout, tiles in files:
        name = layout.name.encode()
        total.update(struct.pack("<I", len(name)) + name + struct.pack("<QQI", layout.size, layout.data_offset, len(tiles)))
        total.update(b"".join(tiles))
    return total.digest()
