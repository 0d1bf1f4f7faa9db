"""Reading pickles that hold plain values and uint8 arrays, without letting them run anything.

A pickle is a program: it names functions of any module and has them called. Here every name that a NumPy array needs
stands for a small stand-in of this file, and every other name is refused, so not even NumPy's own constructors see
what a file says. The bytes become an array only after everything about them has been checked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from src.errors import UserError

ByteArray = npt.NDArray[np.uint8]

_BYTE_TYPES = ("u1", "|u1", "uint8", "<u1", "=u1", "B")


class _Refused(Exception):
    """A pickle wants what these files never need; the message ends a sentence that begins with the file's name."""


class PickledArray:
    """What a pickle says of an array: nothing of it is believed before ``checked_bytes``.

    ``build`` is the state that follows: (version, shape, dtype, whether in Fortran's order, bytes).
    """

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, fortran: Any = False, raw: Any = None) -> None:
        self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("holds an array in an unknown form")
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def checked_bytes(self) -> ByteArray:
        """Make the array: uint8, of the shape that the pickle says.

        Raises:
            ValueError: another dtype, or bytes that do not fill the shape; the message ends a sentence.
        """
        kind = getattr(self.dtype, "name", None)
        if kind not in _BYTE_TYPES:
            raise ValueError(f"must hold uint8, found {kind}")
        shape = self.shape
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"must have a shape of whole numbers, found {shape!r:.60}")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        if not isinstance(raw, bytes | bytearray) or len(raw) != int(np.prod(shape, dtype=object)):
            found = f"{len(raw):,}" if isinstance(raw, bytes | bytearray) else "none"
            raise ValueError(f"must have the bytes of its shape {shape}, found {found}")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if self.fortran is True else "C")


class _DType:
    """What a pickle says of a dtype; its byte order and flags are of no interest for bytes."""

    __slots__ = ("name",)

    def __init__(self, name: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or any(part is not None for part in state[2:5]):
            raise _Refused("holds an array of composite type")


class _StandIn:
    """Called in place of a named function. It has ``__setstate__`` so that a pickle cannot set its attributes."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("changes a function")


def _no_call(*_: Any) -> Any:
    raise _Refused("calls what is only a name in the official files")


def _encoded(text: Any, encoding: Any) -> bytes:
    """Python 3 writes bytes into old pickles as text that is to be encoded: that use alone is known."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"asks for the text codec {encoding!r:.40}")
    return text.encode("latin1")


_NDARRAY = _StandIn(_no_call)


def _reconstructed(kind: Any, *_: Any) -> PickledArray:
    if kind is not _NDARRAY:
        raise _Refused("reconstructs something other than an array")
    return PickledArray()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    return PickledArray(shape, dtype, order == "F", raw)


def _stand_ins() -> dict[tuple[str, str], _StandIn]:
    """Give what each name of NumPy's pickles stands for; NumPy 2 renamed its modules."""
    known = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _StandIn(lambda name, *_: _DType(name)),
        ("_codecs", "encode"): _StandIn(_encoded),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = _StandIn(_reconstructed)
        known[f"{core}.numeric", "_frombuffer"] = _StandIn(_from_buffer)
    return known


_KNOWN = _stand_ins()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(
                f"asks for {module}.{name}, which no such file needs: nothing of it was run, do not trust it"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("asks for objects outside the file")


def load_plain(content: bytes, where: str) -> Any:
    """Read a pickle of numbers, strings, lists, dictionaries and arrays (as ``PickledArray``), running nothing.

    Args:
        content: the pickle; strings of Python 2 become bytes.
        where: the file's name, for the sentence.

    Raises:
        UserError: it asks for anything else, or is no pickle, or is damaged or cut short.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _Refused as refused:
        raise UserError(f"{where} is refused: it {refused}") from refused
    except Exception as error:  # a damaged pickle makes the unpickler fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where} is no readable pickle ({reason:.100}): it is damaged or cut short") from error
