"""Pictures as PNG files, with the standard library alone: the same bytes everywhere."""

from __future__ import annotations

import base64
import struct
import zlib

from harness.figure_data import Picture


def encode(picture: Picture) -> bytes:
    """An 8-bit grey (1 channel) or colour (3 channels) PNG."""
    channels, height, width = picture.shape
    octets = picture.octets
    plane = height * width
    depth = 3 if channels >= 3 else 1
    rows = []
    for row in range(height):
        start = row * width
        line = bytearray(width * depth)
        for channel in range(depth):
            place = channel * plane + start
            line[channel::depth] = octets[place : place + width]
        rows.append(b"\0" + bytes(line))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if depth == 3 else 0, 0, 0, 0)
    body = zlib.compress(b"".join(rows), 9)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def data_uri(picture: Picture) -> str:
    """For `src` of an image on a page that stands alone."""
    return "data:image/png;base64," + base64.b64encode(encode(picture)).decode()
