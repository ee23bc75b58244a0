"""Symbol streams: numbers under contexts, as rANS codes them, and the extra bits of large ones."""

import numpy as np

from .cursor import Corrupt

LOWEST_STATE = 1 << 16
CONTEXTS = 32
SYMBOLS = 128
SAME_TABLE = 255


def read_stream(cursor, contexts):
    """Takes one stream: a symbol for each of `contexts`, and a reader of the extra bits."""
    form = cursor.fields("B")
    precision, lanes = form & 15, {0: 1, 1: 4, 2: 32}.get(form >> 4)
    if precision not in (12, 15) or lanes is None:
        raise Corrupt("a symbol stream of an unknown form")
    tables = _read_tables(cursor, precision)
    word_count = cursor.varint()
    states = np.frombuffer(cursor.take(4 * lanes), "<u4").tolist()
    words = np.frombuffer(cursor.take(2 * word_count), "<u2").tolist()
    extra = Bits(cursor.take(cursor.varint()))

    if min(states) < LOWEST_STATE:
        raise Corrupt("a symbol stream begins with an impossible state")
    symbols = bytearray(len(contexts))
    mask, used = (1 << precision) - 1, 0
    for i, context in enumerate(contexts.tolist()):
        frequency, start, symbol_at = tables[context]
        state = states[i % lanes]
        slot = state & mask
        symbol = symbol_at[slot]
        state = frequency[symbol] * (state >> precision) + slot - start[symbol]
        if state < LOWEST_STATE:
            if used == word_count:
                raise Corrupt("a symbol stream has too few words")
            state = state << 16 | words[used]
            used += 1
        symbols[i] = symbol
        states[i % lanes] = state
    if used != word_count or any(state != LOWEST_STATE for state in states):
        raise Corrupt("a symbol stream does not end where it should")
    return np.frombuffer(symbols, np.uint8).astype(np.int64), extra


def _read_tables(cursor, precision):
    """Per context: the symbols' frequencies, where their intervals start, and the symbol of each slot."""
    total = 1 << precision
    present = cursor.varint()
    if present >> CONTEXTS:
        raise Corrupt("a symbol stream has too many contexts")
    tables = [([total], [0], bytes(total))] * CONTEXTS  # without a table: symbol 0 only
    frequency = None
    for context in range(CONTEXTS):
        if present >> context & 1:
            frequency = _read_table(cursor, total, frequency)
            symbol_at = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), frequency)
            tables[context] = frequency.tolist(), (np.cumsum(frequency) - frequency).tolist(), symbol_at.tobytes()
    return tables


def _read_table(cursor, total, before):
    """The next table; `before` is that of the context before which has one."""
    frequency = np.zeros(SYMBOLS, np.int64)
    count = cursor.fields("B")
    if count == SAME_TABLE and before is not None:
        return before
    if count > 0:
        main, runs = 0, 1
    else:
        main, runs = cursor.fields("BB")
    next_free = 0
    for _ in range(runs):
        first, size = (0, count) if count > 0 else cursor.fields("BB")
        if first < next_free or first + size > SYMBOLS:
            raise Corrupt("the symbols of a table do not ascend")
        next_free = first + size
        for symbol in range(first, next_free):
            if symbol != main:
                byte = cursor.fields("B")
                frequency[symbol] = ((16 + (byte & 15)) << (byte >> 4)) // 16
    rest = total - int(frequency.sum())
    if rest < 1 or main >= SYMBOLS:
        raise Corrupt("the frequencies of a table are too large")
    frequency[main] = rest
    return frequency


class Bits:
    """Bits, lowest first."""

    def __init__(self, data):
        self.bits, self.at = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"), 0

    def next(self, width):
        """One number of so many bits."""
        if width > len(self.bits) - self.at:
            raise Corrupt("it has too few bits")
        bits = self.bits[self.at : self.at + width]
        self.at += width
        return sum(int(bit) << i for i, bit in enumerate(bits))

    def next_gamma(self):
        """One number in Elias's gamma code: zeros, a one, and as many bits as there were zeros."""
        zeros = 0
        while not self.next(1):
            zeros += 1
        if zeros > 31:
            raise Corrupt("a number is too large")
        return 1 << zeros | self.next(zeros)

    def exhausted(self):
        return len(self.bits) - self.at < 8 and not self.bits[self.at :].any()

    def take(self, widths):
        """The next numbers, of so many bits each."""
        ends = np.cumsum(widths)
        total = int(ends[-1]) if len(ends) else 0
        if not total <= len(self.bits) < total + 8 or self.bits[total:].any():
            raise Corrupt("a symbol stream has the wrong number of extra bits")
        numbers = np.zeros(len(widths), np.int64)
        for bit in range(int(widths.max(initial=0))):
            wide = widths > bit
            numbers[wide] |= self.bits[(ends - widths)[wide] + bit].astype(np.int64) << bit
        return numbers


def numbers_of(symbols, extra, more_bits=None):
    """The coded numbers. `more_bits`: how many further low bits each has after those of its symbol."""
    large = symbols >= 16
    own_bits = np.where(large, symbols // 4 - 2, 0)
    further = np.zeros_like(symbols) if more_bits is None else more_bits
    bits = extra.take(own_bits + further)
    own = bits & ((1 << own_bits) - 1)
    number = np.where(large, (4 | symbols & 3) << own_bits | own, symbols)
    return number << further | bits >> own_bits
