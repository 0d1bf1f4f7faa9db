"""Pictures and text that runs leave: the newest of each kind, made small enough to stand in a page."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from src.reporting.record import Record

MOST_PIXELS = 720  # width of a picture in the page
QUALITY = 65  # of WebP
SMALL = 256  # pixels: below, a picture is enlarged pixel by pixel
TEXT = 900  # characters of a sample that are shown
RUNS = 24  # runs whose samples are shown


@dataclass(frozen=True)
class Picture:
    """A picture for a page.

    Args:
        caption: what it is.
        data: of a WebP file.
        width: pixels at which it is shown.
        height: the same.
    """

    caption: str
    data: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture as an address of its own, that needs no file."""
        return "data:image/webp;base64," + base64.b64encode(self.data).decode()

    @property
    def file_name(self) -> str:
        """A name for the file, the same for the same picture."""
        return hashlib.sha256(self.data).hexdigest()[:12] + ".webp"


@dataclass(frozen=True)
class Left:
    """What a run left to look at.

    Args:
        run: its name.
        pictures: samples, learned attention.
        text: a sample of text; empty where it has none.
        caption: of the text.
    """

    run: str
    pictures: tuple[Picture, ...]
    text: str = ""
    caption: str = ""


def left_by(run: Record) -> Left | None:
    """Collect the newest sample and attention picture of a run; None where it has neither. Damaged files are noted."""
    sample, attention = newest(run.path / "samples"), newest(run.path / "attention")
    pictures = []
    if sample is not None and sample.suffix == ".png":
        pictures.append(_noted(run, sample, f"sample, {_step(sample)}: original, given, completed"))
    if attention is not None:
        pictures.append(_noted(run, attention, f"learned attention, {_step(attention)}"))
    text = _text(run, sample) if sample is not None and sample.suffix == ".txt" else ""
    found = tuple(picture for picture in pictures if picture is not None)
    caption = f"sample, {_step(sample)}" if sample is not None else ""
    return Left(run.name, found, text, caption) if found or text else None


def patterns(runs: list[Record]) -> list[Picture]:
    """Collect what each head sees: every different pattern.png once, with the kinds of attention that have it."""
    kinds: dict[str, tuple[Path, Record, list[str]]] = {}
    for run in runs:
        file = run.path / "pattern.png"
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            names = kinds.setdefault(digest, (file, run, []))[2]
            if run.attention not in names:
                names.append(run.attention)
    found = [_noted(run, file, ", ".join(names)) for file, run, names in kinds.values()]
    return [picture for picture in found if picture is not None]


def newest(folder: Path) -> Path | None:
    """Give the file of the latest validation in a folder: step-NUMBER.png or .txt."""
    files = [path for path in folder.glob("step-*") if path.suffix in (".png", ".txt")]
    return max(files, key=lambda path: path.stem, default=None)


def small(file: Path, caption: str) -> Picture:
    """Read a picture and make it small.

    Raises:
        OSError: it cannot be read as one.
    """
    from PIL import Image

    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    if picture.width > MOST_PIXELS:
        picture = picture.resize((MOST_PIXELS, max(1, round(picture.height * MOST_PIXELS / picture.width))))
    elif picture.width < SMALL:
        factor = SMALL // picture.width
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=6)
    return Picture(caption, out.getvalue(), picture.width, picture.height)


def _noted(run: Record, file: Path, caption: str) -> Picture | None:
    try:
        return small(file, caption)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a broken PNG
        run.notes.append(f"{file.parent.name}/{file.name} cannot be shown ({error})")
        return None


def _text(run: Record, file: Path) -> str:
    try:
        text = file.read_text(errors="replace").strip()
    except OSError as error:
        run.notes.append(f"{file.parent.name}/{file.name} cannot be shown ({error})")
        return ""
    return text if len(text) <= TEXT else text[:TEXT] + "…"


def _step(file: Path) -> str:
    number = file.stem.removeprefix("step-")
    return f"step {int(number):,}" if number.isdecimal() else number
