"""Whether the pages of an LMDB file stay inside it: what LMDB itself does not ask.

LMDB maps a file and follows the offsets and sizes in its pages. A damaged one leads it past the end
of the file, which kills the process (SIGBUS). So every page of the tree is walked once before the
store is used. The layout is that of `lmdb.h` and `mdb.c`, data version 1, on a 64-bit machine of
little-endian byte order.
"""

from __future__ import annotations

import struct
from typing import IO

__all__ = ["problem_of_pages"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_META = struct.Struct("<IIQQ48xIHHQQQQQQQ")  # of the page behind its header; the main tree's record
_NODE = struct.Struct("<HHHH")  # low and high half of a size or page, flags, size of the key
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG_DATA = 0x01
_NO_ROOT = 2**64 - 1


def problem_of_pages(file: IO[bytes], size: int) -> str:
    """What is wrong with an LMDB file of `size` bytes; "" if all its pages stay inside it."""
    try:
        return _Walk(file, size).problem()
    except struct.error:
        return "a page ends before what it holds"


class _Walk:
    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def problem(self) -> str:
        metas = []
        page_size = 4096
        for number in range(2):
            content = self._read(number * page_size, 16 + _META.size)
            magic, version, *_, root, last, transaction = _META.unpack_from(content, 16)
            if magic != _MAGIC or version != _VERSION:
                return f"page {number} is no head of a store"
            metas.append((transaction, root, last))
            if number == 0:
                # The record of the free pages, before that of the main tree, holds the page size.
                page_size = struct.unpack_from("<I", content, 16 + 24)[0]
                if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
                    return f"a page size of {page_size}"
        self._page_size = page_size
        _, root, last = max(metas)
        if (last + 1) * page_size > self._size:
            return f"it has {self._size} bytes, expected {(last + 1) * page_size}; it was cut"
        self._pages = last + 1
        pending, seen = ([] if root == _NO_ROOT else [root]), 0
        while pending:
            seen += 1
            if seen > self._pages:
                return "pages that lead back to themselves"
            number = pending.pop()
            if not 2 <= number < self._pages:
                return f"a page number of {number}, of {self._pages} pages"
            found = self._check_page(number, pending)
            if found:
                return f"{found} in page {number}"
        return ""

    def _check_page(self, number: int, pending: list[int]) -> str:
        """What is wrong with a page; adds the pages below it to `pending`."""
        page = self._read(number * self._page_size, self._page_size)
        _, _, flags, lower, upper = _HEADER.unpack_from(page)
        kind = flags & ~0x10  # without the mark of a page that was written lately
        if kind not in (_BRANCH, _LEAF):
            return f"flags {flags:#x}"
        if not _HEADER.size <= lower <= upper <= self._page_size or lower % 2:
            return f"bounds {lower} and {upper}"
        for (start,) in struct.iter_unpack("<H", page[_HEADER.size : lower]):
            low, high, node_flags, key_size = _NODE.unpack_from(page, start)
            end = start + _NODE.size + key_size
            if start < upper:
                return f"a node at {start}"
            if kind == _BRANCH:
                pending.append(low | high << 16 | node_flags << 32)
            elif node_flags == _BIG_DATA:
                (first,) = struct.unpack_from("<Q", page, end)
                if problem := self._check_overflow(first, low | high << 16):
                    return problem
                end += 8
            elif node_flags:
                return f"a node with flags {node_flags:#x}"
            else:
                end += low | high << 16
            if end > self._page_size:
                return f"a node that ends at {end}"
        return ""

    def _check_overflow(self, first: int, size: int) -> str:
        if not 2 <= first < self._pages:
            return f"a page number of {first}"
        _, _, flags, low, high = _HEADER.unpack(self._read(first * self._page_size, _HEADER.size))
        pages = low | high << 16
        if flags & ~0x10 != _OVERFLOW or first + pages > self._pages:
            return f"an overflow of {pages} pages at {first}"
        if _HEADER.size + size > pages * self._page_size:
            return f"a value of {size} bytes in {pages} pages"
        return ""

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)
