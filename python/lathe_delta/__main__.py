"""usage: python3 -m lathe_delta show DELTA | check DELTA | apply DELTA DIR | revert DELTA DIR

show      what the delta leads from and to, and its tiles
check     every checksum in it
apply     the files of DIR, a copy that nobody reads meanwhile, become those after the delta; revert: those before
"""

import sys

from .container import MODES, Corrupt, Delta
from .directory import Conflict, apply_to_directory


def show(delta):
    print(f"version {delta.from_version} -> {delta.to_version}, root {delta.from_root.hex()} -> {delta.to_root.hex()}")
    for tile in delta.tiles:
        print(f"{delta.describe(tile)}: {MODES[tile.mode]}, {tile.size} bytes")
    for name in delta.attachments:
        print(f"attachment {name}: {delta.attachments[name][1]} bytes")


def main(arguments):
    if len(arguments) < 2 or len(arguments) != {"show": 2, "check": 2, "apply": 3, "revert": 3}.get(arguments[0]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        delta = Delta(arguments[1])
        if arguments[0] == "show":
            show(delta)
        elif arguments[0] == "check":
            delta.verify()
        else:
            apply_to_directory(delta, arguments[2], forward=arguments[0] == "apply")
    except (Conflict, Corrupt, OSError) as error:
        print(f"lathe_delta: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
