"""ImageNet 64x64 from the files that ``python -m scripts.prepare_imagenet64`` writes (section 7.3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.data.base import Fact, Splits
from src.data.pictures import (
    EvalPictures,
    PictureDataModule,
    PictureStore,
    TrainPictures,
    mapped_pictures,
    picture_bytes,
)
from src.data.portions import Portions
from src.errors import UserError

SIDE = 64


class ImageNet64(PictureDataModule):
    """The official training and validation pictures.

    There is no test split: as the paper reports its figure on the validation pictures, ``test`` is that same split,
    and the label says so. The later npz release is resized differently, and its label says that its figures are not
    comparable.

    Args:
        data_dir: folder of all data sets; the prepared files are in ``imagenet64`` there.
        portions: of batches; ``context`` is 12,288.
        path: folder of the prepared files; None for ``data_dir/imagenet64``.
        allow_partial: accept files that were prepared from fewer pictures.
    """

    def __init__(
        self,
        data_dir: Path,
        portions: Portions,
        *,
        path: Path | None = None,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(portions)
        folder = Path(data_dir) / "imagenet64" if path is None else Path(path)
        self.folder = folder.expanduser().absolute()
        self.allow_partial = allow_partial

    @property
    def side(self) -> int:
        """Pixels of a row."""
        return SIDE

    def prepare_data(self) -> None:
        """Check that the prepared files are there."""
        self.open_splits()

    def open_splits(self) -> Splits:
        """Open the official training and validation split; the latter is the test split as well."""
        train, held = (self._prepared(split) for split in ("train", "validation"))
        if train["release"] != held["release"]:
            raise UserError(f"{self.folder} holds train.npy and validation.npy of two releases; prepare both again")
        count, held_count = int(train["pictures"]), int(held["pictures"])
        official = (int(train["official"]), int(held["official"]))
        partial = (count, held_count) != official
        if partial and not self.allow_partial:
            raise UserError(
                f"{self.folder} holds {count:,} + {held_count:,} pictures of {official[0]:,} + {official[1]:,}: set "
                "data.allow_partial=true to use them, labelled so"
            )
        label = f"{train['label']}, test is the validation split"
        if partial:
            label += f", partial: {count:,} + {held_count:,} of {official[0]:,} + {official[1]:,} pictures"
        skipped = len(train["skipped"]) + len(held["skipped"])
        if skipped:
            label += f", {skipped} bad pictures skipped"
        width = picture_bytes(SIDE)
        fit = PictureStore(self.folder / "train.npy", 0, count, width)
        val = PictureStore(self.folder / "validation.npy", 0, held_count, width)
        facts: dict[str, Fact] = {
            "path": str(self.folder),
            "sha256_train": str(train["sha256"]),
            "sha256_validation": str(held["sha256"]),
            "skipped": skipped,
        }
        return Splits(TrainPictures(fit), EvalPictures(val), EvalPictures(val), label, partial, facts)

    def _prepared(self, split: str) -> dict[str, Any]:
        """Read what is known of a prepared file, and check the file against it."""
        path = self.folder / f"{split}.npy"
        side_file = path.with_suffix(".json")
        if not (path.is_file() and side_file.is_file()):
            raise UserError(
                f"{path} is not there: get train_64x64.tar and valid_64x64.tar, or the npz batches, from image-net.org "
                f"(it asks for a login), and run  python -m scripts.prepare_imagenet64 FOLDER --out {self.folder}"
            )
        keys = {"release", "label", "pictures", "official", "sha256", "skipped"}
        try:
            known = json.loads(side_file.read_text())
            missing = keys - known.keys()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{side_file} cannot be read ({error}); remove it and prepare again") from error
        if missing:
            raise UserError(f"{side_file} lacks {', '.join(sorted(missing))}; remove it and prepare again")
        found = len(mapped_pictures(path, picture_bytes(SIDE)))
        if found != known["pictures"] or found < 1:
            raise UserError(
                f"{path} must hold {known['pictures']} pictures, found {found}; remove it and prepare again"
            )
        return dict(known)
