"""Which files a DICOM scan consists of: a folder, a zip, a DICOMDIR, one file or a list of files.

Archives are untrusted: names in them are never used as paths, and everything unpacked lies in one
private temporary folder that is removed on leaving.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from medseg_diff.errors import InputError
from medseg_diff.io import safety
from medseg_diff.io.dicom.dataset import is_dicom, open_dataset, quiet
from medseg_diff.io.names import is_image_name, safe_stem

Source = str | Path | Sequence[str | Path]
ZIP_MAGIC = b"PK\x03\x04"
MOST_FILES = 50_000
MOST_BYTES = 32 << 30
# Medical images seldom shrink more than fourfold; small archives may do as they like.
MOST_RATIO, RATIO_FROM = 100, 64 << 20
_CHUNK = 1 << 20


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive by name and content."""
    if path.suffix.lower() != ".zip":
        return False
    try:
        return safety.file_head(path, 4) == ZIP_MAGIC
    except InputError:
        return False


def holds_dicom(path: str | Path) -> bool:
    """Whether a folder holds DICOM files, directly or by way of a DICOMDIR in it."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    return any(is_dicom(file) for file in _visible(folder))


def is_dicom_source(path: str | Path) -> bool:
    """Whether a path is a DICOM file, a folder of DICOM files, or a zip archive."""
    path = Path(path)
    return holds_dicom(path) if path.is_dir() else is_zip(path) or is_dicom(path)


def find_scans(folder: str | Path) -> list[Path]:
    """What a folder holds, sorted by name: each path is one scan or one channel of it.

    A folder with DICOM files directly in it is one scan, and so is every NIfTI file beside them
    (but no picture: those are screenshots). Any other folder gives its image files, its zip
    archives and its subfolders with DICOM in them.
    """
    folder = Path(folder)
    found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    images = [p for p in found if is_image_name(p.name)]
    others = [p for p in found if not is_image_name(p.name)]
    if any(is_dicom(p) for p in others if p.is_file()):
        named = folder if folder.name not in ("", "..") else folder.resolve()
        return [named, *(p for p in images if p.name.lower().endswith((".nii", ".nii.gz")))]
    return sorted(images + [p for p in others if is_zip(p) or holds_dicom(p)])


@contextlib.contextmanager
def dicom_files(source: Source) -> Iterator[tuple[list[Path], int]]:
    """The DICOM files of a scan, and how many other files lie among them.

    Files of a zip exist only within the context.

    Raises:
        InputError: if there is none, or an archive or DICOMDIR is not to be trusted.
    """
    if not isinstance(source, str | Path):
        files = [Path(one) for one in source]
        for path in files:
            safety.file_size(path)
        yield _dicom_among(files, files[0] if files else None)
        return
    path = Path(source)
    if path.is_dir():
        yield _of_folder(path)
        return
    if is_zip(path):
        with tempfile.TemporaryDirectory(prefix="medseg_diff_") as folder:
            yield _dicom_among(_unpack(path, Path(folder)), path)
        return
    safety.file_size(path)
    if path.name.upper() == "DICOMDIR":
        yield _dicom_among(_listed(path), path)
        return
    yield _dicom_among([path], path)


def _visible(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", file=folder) from None
    if len(found) > MOST_FILES:
        raise InputError("holds too many files", file=folder, found=len(found), expected=MOST_FILES)
    return found


def _of_folder(folder: Path) -> tuple[list[Path], int]:
    files = _visible(folder)
    index = next((f for f in files if f.name.upper() == "DICOMDIR"), None)
    images = [f for f in files if f != index]
    if index is not None and not any(is_dicom(f) for f in images):
        return _dicom_among(_listed(index), index)
    return _dicom_among(images, folder)


def _dicom_among(files: Sequence[Path], where: Path | None) -> tuple[list[Path], int]:
    found = [path for path in files if is_dicom(path)]
    if not found:
        raise InputError(
            "is a folder and holds no DICOM file" if where is not None and where.is_dir()
            else "no DICOM file",
            file=where,
            found=f"{len(files)} other files",
            expected="files with DICM at byte 128",
            remedy="name the folder that holds the slices themselves",
        )  # fmt: skip
    return found, len(files) - len(found)


def _listed(index: Path) -> list[Path]:
    """Files that a DICOMDIR names, all of them inside its own folder (F66)."""
    root = index.parent.resolve()
    dataset = open_dataset(index, ("DirectoryRecordSequence",))
    found = []
    with quiet():
        records = dataset.get("DirectoryRecordSequence") or ()
        listed = [record.get("ReferencedFileID") for record in records]
    for parts in filter(None, listed):
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        path = root.joinpath(*names)
        odd = any(n in ("", ".", "..") or "/" in n or "\\" in n or ":" in n for n in names)
        if odd or not path.resolve().is_relative_to(root):
            raise InputError(
                "names a file outside its own folder",
                file=index,
                field="ReferencedFileID",
                expected="files below the folder of the DICOMDIR",
                remedy="do not use this disc image, or name the folder of the slices",
            )
        safety.file_size(path)
        found.append(path)
    return found


def _unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack into numbered folders, with what was really unpacked held against the caps."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            limit = _checked_limit(members, archive)
            done = 0
            found = []
            for number, member in enumerate(members):
                target = folder / str(number) / _member_name(member, number)
                target.parent.mkdir(mode=0o700)
                with opened.open(member) as packed, target.open("xb") as out:
                    target.chmod(0o600)
                    while chunk := packed.read(_CHUNK):
                        done += len(chunk)
                        if done > limit:
                            _refuse_archive(archive, "unpacks to more than it states", done, limit)
                        out.write(chunk)
                found.append(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"archive is damaged or not plain zip ({type(error).__name__})",
            file=archive,
            remedy="unpack it by hand and name the folder",
        ) from None
    return found


def _checked_limit(members: Sequence[zipfile.ZipInfo], archive: Path) -> int:
    """Bytes the archive may unpack to, after its table of contents has been checked."""
    if len(members) > MOST_FILES:
        _refuse_archive(archive, "holds too many files", len(members), MOST_FILES)
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        mode = member.external_attr >> 16
        link = stat.S_IFMT(mode) not in (0, stat.S_IFREG)
        rooted = member.filename.startswith(("/", "\\")) or member.filename[1:2] == ":"
        if rooted or ".." in parts or link or member.flag_bits & 1:
            what = "an encrypted file" if member.flag_bits & 1 else "a link or a path outside"
            _refuse_archive(archive, "is not to be trusted", what, "plain files below its root")
    total = sum(member.file_size for member in members)
    packed = archive.stat().st_size
    limit = min(MOST_BYTES, max(RATIO_FROM, MOST_RATIO * packed))
    if total > limit:
        _refuse_archive(archive, "unpacks to too much", f"{total} bytes", f"at most {limit}")
    return limit


def _refuse_archive(archive: Path, problem: str, found: object, expected: object) -> None:
    raise InputError(
        problem,
        file=archive,
        field="archive",
        found=found,
        expected=expected,
        remedy="unpack it by hand if you trust it, and name the folder",
    )


def _member_name(member: zipfile.ZipInfo, number: int) -> str:
    """The member's own name where that is a harmless one."""
    try:
        return safe_stem(PurePosixPath(member.filename).name)
    except InputError:
        return str(number)
