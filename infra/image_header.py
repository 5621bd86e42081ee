"""The size that a picture file states in its first bytes, read without decoding it.

Libraries that open a picture decode it on the way (FFmpeg tries a frame, OpenCV has no other call), which is too late
for one that states 100 000 x 100 000 pixels.
"""

import struct

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers SOF0 to SOF15 (ITU-T T.81, table B.1), which state a size; those taken out are DHT, JPG and DAC."""


def stated_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG, PNG, GIF, WebP or BMP from its first bytes; None for other or too few bytes.

    Formats: ITU-T T.81, W3C PNG, GIF89a, RFC 9649 (WebP), BITMAPINFOHEADER. As stored: before any EXIF rotation.
    """
    try:
        if head[:3] == b"\xff\xd8\xff":
            return _jpeg(head)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            width_px, height_px = struct.unpack_from(">II", head, 16)
        elif head[:4] == b"GIF8":
            width_px, height_px = struct.unpack_from("<HH", head, 6)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp(head)
        elif head[:2] == b"BM" and struct.unpack_from("<I", head, 14)[0] >= 40:
            width_px, height_px = map(abs, struct.unpack_from("<ii", head, 18))
        else:
            return None
    except struct.error:
        return None
    return height_px, width_px


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    while head[at : at + 1] == b"\xff":
        marker = head[at + 1] if at + 1 < len(head) else 0
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length, _, height_px, width_px = struct.unpack_from(">HBHH", head, at + 2)
        if marker in _JPEG_FRAMES:
            return height_px, width_px
        at += 2 + length
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width_px, height_px = struct.unpack_from("<HH", head, 26)
        return height_px & 0x3FFF, width_px & 0x3FFF
    return None
