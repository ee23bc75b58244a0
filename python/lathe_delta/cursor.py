"""Takes little-endian fields from the front of some bytes."""

import struct


class Corrupt(Exception):
    """The delta contradicts itself. The message names the part."""


class Cursor:
    def __init__(self, data):
        self.data, self.at = memoryview(data), 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Corrupt("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self):
        return self.take(len(self.data) - self.at)

    def fields(self, form):
        """One value, or a tuple of several, of a struct format."""
        values = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
        return values[0] if len(values) == 1 else values

    def varint(self):
        number = shift = 0
        while True:
            byte = self.fields("B")
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
            if shift == 56:
                raise Corrupt("a number has too many digits")

    def text(self):
        try:
            return bytes(self.take(self.fields("I"))).decode()
        except UnicodeDecodeError:
            raise Corrupt("a name is not UTF-8") from None

    def done(self):
        return self.at == len(self.data)
