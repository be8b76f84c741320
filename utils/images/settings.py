"""The settings that determine every cached pixel, with a hash."""

import hashlib
import json
from dataclasses import asdict, dataclass

from utils.core.errors import KitError
from utils.core.formats import check, check_types

LARGEST_SIDE = 2**14  # pixels: three times that of the largest mammograms


class CacheError(KitError):
    """A cache folder is unusable; the message says what to do."""


@dataclass(frozen=True)
class CacheSettings:
    """All settings that determine a cached pixel, train or test.

    Parameters
    ----------
    image_height, image_width : int
        Size of a cached image in pixels.
    margin : float
        Kept around the breast, as a share of the original's longer side, in [0, 1).
    exact : bool
        Decode every image at full resolution; see `utils.images.preprocessing.preprocess`.
    version : int
        Raise it with every change of preprocessing that changes pixels.

    Raises
    ------
    CacheError
        If a value has the wrong type or is out of range.
    """

    image_height: int = 1024
    image_width: int = 512
    margin: float = 0.03
    exact: bool = False
    version: int = 2

    def __post_init__(self):
        """Check types and ranges: values may come from a notebook or from another person's config.json."""
        check_types(self, CacheError)
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            check(1 <= value <= LARGEST_SIDE, name, value, f"from 1 to {LARGEST_SIDE}", CacheError)
        check(0 <= self.margin < 1, "margin", self.margin, "from 0 to below 1", CacheError)
        check(self.version >= 1, "version", self.version, "1 or more", CacheError)

    @property
    def arguments(self) -> tuple[int, int, float, bool]:
        """Return the arguments of `utils.images.preprocessing.preprocess` after the path."""
        return self.image_height, self.image_width, self.margin, self.exact

    @property
    def hash(self) -> str:
        """Return 12 hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
