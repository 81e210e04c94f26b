"""Reads the variables of a TensorFlow checkpoint (`X.index`, `X.data-00000-of-00001`) without it.

The index is a table of sorted keys in blocks, each value a protocol buffer that says where the
variable's bytes lie in the data files. Format: tensorflow/core/util/tensor_bundle and
tensorflow/core/lib/io/table_format.txt of its documentation.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # of a block: how it is compressed, and its checksum
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of a protocol buffer's fields


def prefix_of(path: Path) -> Path | None:
    """The name that the files of a checkpoint begin with, from one of them; None of others."""
    path = Path(path)
    begin = path.name
    for part in (".index", ".meta", ".data-"):
        begin = begin.partition(part)[0]
    prefix = path.with_name(begin)
    return prefix if prefix.with_name(f"{begin}.index").is_file() else None


def read_variables(prefix: Path) -> dict[str, np.ndarray]:
    """The variables of a checkpoint, by name; those that hold no numbers are left out.

    Args:
        prefix: such as `Epoch_(200)_(947of947).ckpt`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut off or of another form.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        entries = dict(_entries(index.read_bytes()))
        header = dict(_fields(entries.pop(b"", b"")))
        shards = header.get(1, 1)
        if header.get(2, 0):
            raise ValueError("numbers of big-endian machines")
        names = [f"{prefix.name}.data-{i:05}-of-{shards:05}" for i in range(shards)]
        data = [np.memmap(prefix.with_name(name), np.uint8, mode="r") for name in names]
        found = {}
        for key, value in entries.items():
            fields = dict(_fields(value))
            if fields.get(1) not in _DTYPES or 7 in fields:  # texts, or parts of a variable
                continue
            shape = [dict(_fields(size)).get(1, 0) for tag, size in _fields(fields[2]) if tag == 2]
            begin, size = fields.get(4, 0), fields.get(5, 0)
            values = data[fields.get(3, 0)][begin : begin + size]
            found[key.decode()] = np.array(values).view(_DTYPES[fields[1]]).reshape(shape)
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{index}: cut off, or no checkpoint of TensorFlow ({error})") from None
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits in each byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table."""
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise ValueError("its end is another")
    place = len(table) - _FOOTER
    for _ in range(2):  # where the block of other information lies
        _, place = _varint(table, place)
    for _, handle in _block(table, *_handle(table, place)):
        yield from _block(table, *_handle(handle, 0))


def _handle(data: bytes, place: int) -> tuple[int, int]:
    begin, place = _varint(data, place)
    return begin, _varint(data, place)[0]


def _block(table: bytes, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys, each stored without what it shares with the one before, and values."""
    block, trailer = table[begin : begin + size], table[begin + size : begin + size + _TRAILER]
    if len(trailer) < _TRAILER or trailer[0]:
        raise ValueError("a block that is cut off or compressed")
    restarts = struct.unpack("<I", block[-4:])[0]
    end, place, key = len(block) - 4 * (restarts + 1), 0, b""
    while place < end:
        shared, place = _varint(block, place)
        further, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + further]
        place += further
        yield key, block[place : place + length]
        place += length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            value = message[place : place + (8 if kind == _FIXED64 else 4)]
            place += len(value)
        elif kind == _BYTES:
            length, place = _varint(message, place)
            value = message[place : place + length]
            place += length
        else:
            raise ValueError(f"a field of kind {kind}")
        yield number, value
