"""Image files in memory."""

import io
import struct
import zlib

from PIL import Image


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(stream := io.BytesIO(), kind)
    return stream.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes whose header claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(10))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
