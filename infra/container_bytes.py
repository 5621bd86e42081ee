"""How many bytes a container says that its file has, which a download that broke off does not.

Read from the sizes of the outermost parts, because durations in headers are rounded, absent or those of another stream.
"""

import struct
from pathlib import Path
from typing import BinaryIO

_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_TS_PACKET_BYTES = 188
_TS_SYNC = 0x47
_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})


def stated_bytes(path: Path) -> int | None:
    """The bytes that an MP4, Matroska, AVI or transport stream needs to be whole; None where it does not say.

    Formats: ISO/IEC 14496-12 boxes, RFC 8794 (EBML), RIFF with OpenDML's further chunks, ISO/IEC 13818-1 packets. A
    transport stream cut between two packets cannot be told from a whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2 * _TS_PACKET_BYTES)
        if head[4:8] in _FIRST_BOXES:
            return _end_of_boxes(file, size)
        if head[:4] == b"RIFF":
            return _end_of_riff(file, size)
        if head[:4] == _EBML_MAGIC:
            return _end_of_segment(file)
    if len(head) > _TS_PACKET_BYTES and head[0] == head[_TS_PACKET_BYTES] == _TS_SYNC:
        return -(-size // _TS_PACKET_BYTES) * _TS_PACKET_BYTES
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        (length,) = struct.unpack_from(">I", head)
        if length == 1:
            (length,) = struct.unpack_from(">Q", head, 8)
        if length < 8 or not head[4:8].isascii():  # to the end of the file, or no box: bytes that someone appended
            return size
        at += length
    return at


def _end_of_riff(file: BinaryIO, size: int) -> int:
    at = 0
    while at < size:
        file.seek(at)
        tag, length = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if tag != b"RIFF" or not length:
            return size
        at += 8 + length + length % 2
    return at - 1 if at == size + 1 else at  # the last padding byte is often left out


def _end_of_segment(file: BinaryIO) -> int | None:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return None
    file.seek(length, 1)
    if file.read(4) != _EBML_SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """A variable-length integer of EBML; None for one that means "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if bits == (1 << 7 * (more + 1)) - 1 else bits
