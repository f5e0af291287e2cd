"""Variable-length text attributes, parsed from the bytes of the file, because the HDF5 library hangs on a damaged heap.

New files have fixed-length texts, older ones variable-length texts. For each text the attribute has a reference: its
length, the address of a heap collection, and an index in it. Only this part of the format is parsed (HDF5 File Format
Specification, versions 0 to 3, sections III.D, IV.A.1 and IV.A.2.m), with bounds at every step.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

MAX_HEADER = 16 << 20
"""Bytes of an object header."""
MAX_BLOCKS = 1000
"""Blocks of an object header."""

_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
_IS_SHARED = 0x02


class UnreadableTexts(ValueError):
    """The texts are damaged, or stored in a way that is not supported."""


Read = Callable[[int, int], bytes]
"""(address, count) -> bytes of the file."""


def read_texts(descriptor: int, base: int, sizes: tuple[int, int], header: int, name: bytes, limit: int) -> list[bytes]:
    """Read the texts of an attribute.

    Args:
        descriptor: file descriptor.
        base: base address, from which addresses in the file are counted.
        sizes: bytes of an address and of a length.
        header: address of the object header.
        name: of the attribute.
        limit: largest total size of the texts, bytes.

    Raises:
        UnreadableTexts: they are longer, damaged, or stored in another way than by h5py.
        OSError: the file cannot be read.
    """
    if sizes != (8, 8):
        raise UnreadableTexts("addresses are not of 8 bytes")
    read = partial(_read, descriptor, base)
    for kind, flags, body in _messages(read, header):
        if kind == _ATTRIBUTE and not flags & _IS_SHARED:
            found, data = _attribute(body)
            if found == name:
                return _resolve(read, data, limit)
    raise UnreadableTexts("the texts are not in the object's header")


def _read(descriptor: int, base: int, address: int, count: int) -> bytes:
    if not 0 <= address < 1 << 62:
        raise UnreadableTexts("an address is damaged")
    found = os.pread(descriptor, count, base + address)
    if len(found) < count:
        raise UnreadableTexts("the file ends too early")
    return found


def _unpack(layout: str, data: bytes, place: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(f"<{layout}", data, place)
    except struct.error:
        raise UnreadableTexts("a header is damaged") from None


def _messages(read: Read, header: int) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and body of each message in an object header, version 1 or 2."""
    begin = read(header, 32)
    # Version 2: the kind has one byte, and the creation order, if it is tracked, follows the flags.
    is_second = begin[:4] == b"OHDR"
    layout, extra = ("BHB", 2 if begin[5] & 0x04 else 0) if is_second else ("HHB", 3)
    if is_second:
        place = 6 + (16 if begin[5] & 0x20 else 0) + (4 if begin[5] & 0x10 else 0)
        width = 1 << (begin[5] & 0x03)
        blocks = [(header + place + width, int.from_bytes(begin[place : place + width], "little"))]
    elif begin[0] == 1:
        blocks = [(header + 16, int.from_bytes(begin[8:12], "little"))]
    else:
        raise UnreadableTexts("a header is damaged")
    total = 0
    for number in range(MAX_BLOCKS):
        if number == len(blocks):
            return
        place, size = blocks[number]
        total += size
        if total > MAX_HEADER:
            raise UnreadableTexts("a header is too large")
        block, at = read(place, size), 0
        while at + struct.calcsize(f"<{layout}") + extra <= len(block):
            kind, length, flags = _unpack(layout, block, at)
            at += struct.calcsize(f"<{layout}") + extra
            body = block[at : at + length]
            at += length
            if kind == _CONTINUATION:
                begin_of_next, size_of_next = _unpack("QQ", body, 0)
                # In version 2 the messages are preceded by a signature and followed by a checksum.
                blocks.append((begin_of_next + 4, size_of_next - 8) if is_second else (begin_of_next, size_of_next))
                if blocks[-1][1] < 0:
                    raise UnreadableTexts("a header is damaged")
            else:
                yield kind, flags, body
    raise UnreadableTexts("a header has too many blocks")


def _attribute(body: bytes) -> tuple[bytes, bytes]:
    """Name and data in an attribute message."""
    version, _, *sizes = _unpack("BBHHH", body, 0)
    place = 9 if version == 3 else 8
    name = body[place : place + sizes[0]].split(b"\0")[0]
    # Version 1 pads name, type and shape to multiples of 8 bytes.
    place += sum(-(-size // 8) * 8 if version == 1 else size for size in sizes)
    return name, body[place:]


def _resolve(read: Read, data: bytes, limit: int) -> list[bytes]:
    collections: dict[int, dict[int, bytes]] = {}
    found, total = [], 0
    for place in range(0, len(data) - 15, 16):
        length, address, index = _unpack("IQI", data, place)
        if length and address not in collections:
            collections[address] = _collection(read, address, limit)
        text = collections[address].get(index, b"") if length else b""
        if len(text) < length:
            raise UnreadableTexts("a text is not where it should be")
        total += length
        if total > limit:
            raise UnreadableTexts("the texts are too long")
        found.append(text[:length].rstrip(b"\0"))
    return found


def _collection(read: Read, address: int, limit: int) -> dict[int, bytes]:
    """The objects in a collection of the global heap, by index."""
    signature, size = _unpack("4s4xQ", read(address, 16), 0)
    if signature != b"GCOL" or not 16 <= size <= limit + 4096:
        raise UnreadableTexts("a heap is damaged")
    block, at = read(address, size), 16
    found = {}
    while at + 16 <= size:
        index, length = _unpack("H6xQ", block, at)
        # Index 0 is the free space, the last entry.
        if index == 0:
            break
        found[index] = block[at + 16 : at + 16 + length]
        at += 16 + -(-length // 8) * 8
    return found
