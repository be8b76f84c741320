"""start.json of a fold: the weights that it started from, and the patients that they were trained on."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.core.files import read_json, write_json
from utils.core.formats import build, check, check_types, naming
from utils.runs.errors import REMEDY, TrainingError

FILE = "start.json"
SHA256 = "[0-9a-f]{64}"
FILE_OF_RUN = r"fold[0-9]+/(patches/)?weights\.safetensors"


@dataclass(frozen=True)
class Start:
    """Weights that a fold starts from.

    Parameters
    ----------
    weights_path : str
        Parameter of the configuration: a file, or the folder of a run.
    file : str
        The file in that folder, as ``fold0/weights.safetensors``; empty if ``weights_path`` is the file.
    sha256 : str
        Hash of the file.
    seen : tuple of str
        Patients who trained these weights, or the weights from which these started in turn.
    is_known : bool
        False if this kit trained the weights, or those before them, and the patients are unknown.
    """

    weights_path: str
    file: str
    sha256: str
    seen: tuple[str, ...] = ()
    is_known: bool = True

    def __post_init__(self):
        """Check types and forms: the file may be somebody else's."""
        check_types(self)
        check(self.weights_path != "", "weights_path", self.weights_path, "text")
        is_file = not self.file or re.fullmatch(FILE_OF_RUN, self.file) is not None
        check(is_file, "file", self.file, "fold0/weights.safetensors or the like, or empty")
        check(re.fullmatch(SHA256, self.sha256) is not None, "sha256", self.sha256, "64 hexadecimal digits")

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.weights_path) / self.file if self.file else Path(self.weights_path)

    def write(self, fold_dir: Path) -> None:
        """Write start.json into a fold's folder."""
        write_json(fold_dir / FILE, asdict(self))


def read_start(fold_dir: Path) -> Start | None:
    """Read a fold's start.json; return None if the fold started from nothing, or an earlier version trained it.

    Raises
    ------
    TrainingError
        If the file is broken.
    """
    path = fold_dir / FILE
    if not path.is_file():
        return None
    with naming(path, TrainingError, REMEDY):
        return build(Start, read_json(path), complete=True)


def start_files(run_dir: Path) -> Iterable[Path]:
    """List the start.json files of a run's folds."""
    return sorted(run_dir.glob(f"fold*/{FILE}"))
