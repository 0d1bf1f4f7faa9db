"""Decoding one PNG strictly: whatever is not the expected picture, byte for byte, is refused with its reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}


class BadPictureError(Exception):
    """A picture that cannot be taken; the message says why in a few words."""


def decode_png(raw: bytes, width: int, height: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode an 8-bit RGB PNG of ``width`` x ``height`` pixels: uint8 (3 * width * height,), row, column, channel.

    ``height`` is ``width`` by default. Every chunk's checksum is verified; Pillow by itself does not verify those of
    the pixels.

    Raises:
        BadPictureError: it is damaged, cut short, of another size or of another kind.
    """
    height = width if height is None else height
    _check_chunks(raw, (width, height))
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except Exception as error:  # Pillow fails in many ways on damaged pixels
        raise BadPictureError(
            f"cannot be decoded ({str(error).splitlines()[0] if str(error) else 'damaged'})"
        ) from error
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise BadPictureError(f"decodes to {pixels.dtype} {pixels.shape}")
    return pixels.reshape(-1)


def _check_chunks(raw: bytes, wanted: tuple[int, int]) -> None:
    if not raw.startswith(_SIGNATURE):
        raise BadPictureError("is empty" if not raw else "is no PNG")
    place, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if place + 12 > len(raw):
            raise BadPictureError("is cut short")
        length, kind = struct.unpack_from(">I4s", raw, place)
        end = place + 8 + length
        if end + 4 > len(raw):
            raise BadPictureError("is cut short")
        if zlib.crc32(raw[place + 4 : end]) != struct.unpack_from(">I", raw, end)[0]:
            raise BadPictureError("is damaged (a checksum is wrong)")
        if place == len(_SIGNATURE):
            _check_header(kind, raw[place + 8 : end], wanted)
        if kind == b"acTL":
            raise BadPictureError("is animated")
        place = end + 4
    if place != len(raw):
        raise BadPictureError("has bytes behind its end")


def _check_header(kind: bytes, header: bytes, wanted: tuple[int, int]) -> None:
    if kind != b"IHDR" or len(header) != 13:
        raise BadPictureError("has no header")
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    if (width, height) != wanted:
        raise BadPictureError(f"is {width} x {height} pixels")
    if colour != 2:
        raise BadPictureError(f"is {_COLOURS.get(colour, f'of colour type {colour}')}")
    if depth != 8:
        raise BadPictureError(f"has {depth} bits a channel")
