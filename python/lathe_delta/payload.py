"""Payloads: one side of a tile from the other."""

import numpy as np

from .cursor import Corrupt, Cursor
from .symbols import Bits, numbers_of, read_stream

BLOCK = 512  # bytes: what is left out of a part or coded

# Element type: (bytes, bits of the mantissa; None for integers)
ELEMENTS = {0: (1, None), 1: (2, None), 2: (4, None), 3: (2, 7), 4: (2, 10), 5: (4, 23)}
ELEMENT_SIZES = {kind: size for kind, (size, _) in ELEMENTS.items()}


def decode_payload(parts, known, payload, forward=True, version=2):
    """The other state of a tile whose bytes are `known`; parts as of Layout.tile_parts; the format's version. Raises Corrupt."""
    cursor, pieces, at = Cursor(payload), [], 0
    for kind, size in parts:
        pieces.append(_decode_part(cursor, kind, known[at : at + size], forward, version))
        at += size
    if not cursor.done():
        raise Corrupt("there are bytes after a payload")
    return b"".join(pieces)


def _decode_part(cursor, kind, known, forward, version):
    mode = cursor.fields("B")
    if mode == 0:
        return bytes(known)
    if mode == 3:
        return (np.frombuffer(known, np.uint8) ^ np.frombuffer(cursor.take(len(known)), np.uint8)).tobytes()
    if mode not in (1, 2):
        raise Corrupt(f"a part of unknown mode {mode}")
    elements = Elements(kind, known)
    coded = _coded_elements(cursor, len(known), elements)
    elements.choose(coded, cursor.fields("BB") if elements.mantissa else (0, 0))
    contexts = elements.contexts()
    if elements.mantissa is not None and (mode == 2 or version > 1):
        crossings = Cursor(cursor.take(cursor.varint()))
        if not forward and not crossings.done():
            contexts = _contexts_before(crossings, elements, contexts, version)
    if mode == 1:
        steps = _sparse_steps(cursor, contexts, elements.last + 1, version)
    else:
        steps = _unzigzag(numbers_of(*read_stream(cursor, contexts)))
    return elements.moved(steps if forward else -steps)


def _coded_elements(cursor, size, elements):
    """Which elements lie in coded blocks."""
    blocks = -(-size // BLOCK)
    coded, at, kind = np.zeros(blocks, bool), 0, False
    first = True
    while at < blocks:
        run = cursor.varint()
        run = blocks - at if run == 0 and not first else run
        if run > blocks - at:
            raise Corrupt("its blocks reach beyond the part")
        coded[at : at + run] = kind
        at, kind, first = at + run, not kind, False
    return np.repeat(coded, BLOCK // elements.size)[: len(elements.bits)]


class Elements:
    """The elements of a part in the state that is known, and those of its coded blocks."""

    def __init__(self, kind, known):
        self.size, self.mantissa = ELEMENTS[kind]
        self.width = 8 * self.size
        self.mask = (1 << self.width) - 1
        self.sign = 1 << (self.width - 1)
        self.bits = np.frombuffer(known, f"<u{self.size}").astype(np.int64)

    def choose(self, coded, context_range):
        self.coded = coded
        self.chosen = self.bits[coded]
        self.base, self.last = context_range
        if self.last >= 32:
            raise Corrupt("too many contexts")

    def contexts_of(self, bits):
        if self.mantissa is None:
            return np.zeros(len(bits), np.int64)
        return np.clip(((bits & ~self.sign) >> self.mantissa) - self.base, 0, self.last)

    def contexts(self):
        return self.contexts_of(self.chosen)

    def moved_bits(self, bits, steps):
        """The elements that lie so many steps away."""
        if self.mantissa is None:
            return (bits + steps) & self.mask
        ordinal = np.where(bits & self.sign, ~bits & self.mask, bits | self.sign)
        ordinal = (ordinal + steps) & self.mask
        return np.where(ordinal & self.sign, ordinal & ~self.sign, ~ordinal & self.mask)

    def moved(self, steps):
        bits = self.bits.copy()
        bits[self.coded] = self.moved_bits(self.chosen, steps)
        return bits.astype(f"<u{self.size}").tobytes()


def _unzigzag(numbers):
    return np.where(numbers & 1, -(numbers >> 1) - 1, numbers >> 1)


def _sparse_steps(cursor, contexts, lists, version):
    """Lists of the changed elements, one per context. In version 1 also one of those whose context changes."""
    by_context = lists
    lists += version == 1
    counts, scales = [], []
    for _ in range(lists):
        counts.append(cursor.varint())
        scales.append(cursor.fields("B") if counts[-1] else 0)
    if sum(counts) > len(contexts) or max(scales) >= 64:
        raise Corrupt("its lists of changes contradict themselves")
    scale = np.repeat(scales, counts).astype(np.int64)
    shift = np.where(scale < 4, 0, (scale - 4) // 2)
    symbols, extra = read_stream(cursor, np.where(scale < 4, scale, 4 + scale % 2))
    gaps = numbers_of(symbols, extra, shift)
    number = np.arange(lists)
    symbols, extra = read_stream(cursor, np.repeat(number % by_context, counts))
    values = _unzigzag(numbers_of(symbols, extra) + 1)

    steps = np.zeros(len(contexts), np.int64)
    ends = np.cumsum(counts)
    crossed = np.zeros(len(steps), bool)
    for c in [*range(by_context, lists), *range(by_context)]:  # that list first: the others do not count its elements
        begin, end = ends[c] - counts[c], ends[c]
        among = np.arange(len(steps)) if c == by_context else np.flatnonzero((contexts == c) & ~crossed)
        places = np.cumsum(gaps[begin:end] + 1) - 1
        if len(places) and places[-1] >= len(among):
            raise Corrupt("a list of changes reaches beyond the part")
        steps[among[places]] = values[begin:end]
        if c == by_context:
            crossed[among[places]] = True
    return steps


def _contexts_before(cursor, elements, contexts, version):
    """The contexts that the elements had in the state before, from those after and the crossings."""
    before, present = contexts.copy(), cursor.varint()
    if present >> 32:
        raise Corrupt("its crossings contradict themselves")
    if present:
        _near_crossings(cursor, present, elements, contexts, before)
    if version > 1:
        _far_crossings(cursor, before)
    if not cursor.done():
        raise Corrupt("there are bytes after its crossings")
    if ((before < 0) | (before > elements.last)).any():
        raise Corrupt("a crossing from a context that does not exist")
    return before


def _near_crossings(cursor, present, elements, contexts, before):
    """Symbols of the elements close to an edge."""
    limits = np.zeros(32, np.int64)  # steps
    for c in range(32):
        if present >> c & 1:
            code = cursor.fields("B")
            if not 1 <= code <= 32:
                raise Corrupt("a crossing from too far")
            limits[c] = 1 << (code - 1)
    reach, coarseness = cursor.fields("BB")
    if coarseness > 4:
        raise Corrupt("its crossings contradict themselves")

    magnitude = elements.chosen & ~elements.sign
    low, far = (elements.base + contexts) << elements.mantissa, 1 << 40
    below = np.where(contexts > 0, magnitude - low + 1, far)
    above = np.where(contexts < elements.last, low + (1 << elements.mantissa) - magnitude, far)
    side = (above < below).astype(np.int64)
    distance = np.minimum(above, below)
    candidates = np.flatnonzero(distance <= limits[contexts])
    d, side, after = distance[candidates], side[candidates], contexts[candidates]
    # floor(2 log2 d) is the number of bits of d squared, less one.
    height = np.array([int(x).bit_length() - 1 for x in d * d], np.int64) + 2 * after
    k = np.clip(reach - height, 0, 15) >> coarseness
    t = _unzigzag(numbers_of(*read_stream(cursor, 2 * k + side)))
    before[candidates] = np.where(side == 1, after - t, after + t)


def _far_crossings(cursor, before):
    """A list of those that came from farther."""
    count = cursor.varint()
    if count == 0:
        return
    shift, place = cursor.fields("B"), -1
    if shift > 31:
        raise Corrupt("the list of crossings has an impossible shift")
    bits = Bits(cursor.rest())
    for _ in range(count):
        gap = (bits.next_gamma() - 1) << shift
        place += 1 + (gap | bits.next(shift))
        if place >= len(before):
            raise Corrupt("a crossing lies past the last element")
        before[place] += _unzigzag(np.int64(bits.next_gamma()))
    if not bits.exhausted():
        raise Corrupt("the list of crossings does not end where it should")
