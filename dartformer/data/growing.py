"""Files of numbers that grow while they are written, and are read as plain arrays."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


class GrowingFile:
    """An .npy file `[T]` of a little-endian type, to which arrays are appended.

    How many numbers it holds is written when it is closed."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        self.dtype = dtype.newbyteorder("<")
        self.count = 0
        self._file = file.open("wb")
        self._start = self._write_header()

    def append(self, numbers: np.ndarray) -> None:
        """Add numbers, which must fit the type."""
        self._file.write(np.ascontiguousarray(numbers, self.dtype).data)
        self.count += len(numbers)

    def _write_header(self) -> int:
        """Write the header; returns where the numbers begin."""
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                # NumPy leaves room for any count in a header, so that it can be written again.
                self._file.seek(0)
                assert self._write_header() == self._start
