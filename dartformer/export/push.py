"""Push: an exported folder to the Hugging Face hub. The dry run needs no network."""

import importlib.util
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.machine.record import Record

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

NAME = re.compile(r"\w[\w .+=,@-]*(/\w[\w .+=,@-]*)*")
"""Paths of the files of an export. A hidden file is none of them, nor is a pattern such as `*`."""


@dataclass(frozen=True)
class Upload(Record):
    """What is uploaded, or would be.

    Attributes:
      repo: "owner/name".
      url: of the model.
      private: whether a new repository is private.
      files: their sizes in bytes, by path.
      uploaded: false after a dry run.
      commit: of the hub.
    """

    repo: str
    url: str
    private: bool
    files: dict[str, int]
    uploaded: bool
    commit: str | None = None


def push(
    folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Upload an export as the model `repo`, after verifying its checksums.

    Args:
      folder: what `export` wrote.
      repo: "owner/name"; created if it does not exist.
      private: create the repository as private.
      dry_run: return what would be uploaded, and upload nothing; needs neither a network nor
        huggingface_hub.

    Returns:
      `{"repo", "url", "private", "files": {path: bytes}, "uploaded"}`, see `Upload`.

    Raises:
      InputError: the folder is not an intact export, a file of it is a link, a name is malformed,
        the extra is missing, or the hub refuses.
    """
    folder = Path(folder)
    if not REPO.fullmatch(repo):
        raise InputError(
            f"a model on the hub is named owner/name, of letters, digits, '.', '_' and '-'; "
            f"got {repo!r}."
        )
    # Verified in a dry run, too: it says what an upload would do.
    names = [*checksums.verify(folder), checksums.CHECKSUMS]
    sizes = {}
    for name in sorted(names):
        sizes[name] = _size(folder, name)
    upload = Upload(
        repo=repo,
        url=f"https://huggingface.co/{repo}",
        private=private,
        files=sizes,
        uploaded=False,
    )
    if not dry_run:
        commit = _upload(folder, upload)
        upload = replace(upload, uploaded=True, commit=commit)
    return upload.to_dict()


def _size(folder: Path, name: str) -> int:
    """The size of a file of an export; `InputError` for anything else that may be listed."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{folder} cannot be uploaded: {checksums.CHECKSUMS} lists {name!r}, which no export "
            f"writes. Export the model again."
        )
    file = folder / name
    # A link could lead to any file of this machine.
    for part in (file, *file.parents):
        if part == folder:
            break
        if part.is_symlink():
            raise InputError(
                f"{folder} cannot be uploaded: {part} is a link. Replace it by the file itself, or "
                f"export the model again."
            )
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{folder} cannot be uploaded: {file} is not a file.")
    return about.st_size


def _upload(folder: Path, upload: Upload) -> str:
    """Send the files; returns the hub's commit."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("push needs huggingface_hub. Install it: pip install 'dartformer[hub]'.")
    from huggingface_hub import CommitOperationAdd, HfApi  # an extra, which may be missing

    api = HfApi()
    try:
        # By name and not as a folder: the hub's client takes the names in a folder for patterns.
        files = []
        for name in upload.files:
            files.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name))
        api.create_repo(upload.repo, private=upload.private, exist_ok=True, repo_type="model")
        commit = api.create_commit(
            repo_id=upload.repo,
            operations=files,
            repo_type="model",
            commit_message="Model exported by dartformer",
        )
    except Exception as error:  # of the network, of the account: the hub's own words say which
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub refused {upload.repo}: {reason} (sign in with `hf auth login`)."
        ) from error
    return str(getattr(commit, "oid", ""))
