"""Push: an exported folder to the Hugging Face hub. The dry run needs no network."""

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.machine.record import Record

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


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
      InputError: the folder is not an intact export, the name is malformed, the extra is missing,
        or the hub refuses.
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
        sizes[name] = (folder / name).stat().st_size
    upload = Upload(
        repo=repo,
        url=f"https://huggingface.co/{repo}",
        private=private,
        files=sizes,
        uploaded=False,
    )
    if not dry_run:
        commit = _upload(folder, upload, names)
        upload = replace(upload, uploaded=True, commit=commit)
    return upload.to_dict()


def _upload(folder: Path, upload: Upload, names: list[str]) -> str:
    """Send the files; returns the hub's commit."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("push needs huggingface_hub. Install it: pip install 'dartformer[hub]'.")
    from huggingface_hub import HfApi  # an extra, which may be missing

    api = HfApi()
    try:
        api.create_repo(upload.repo, private=upload.private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=upload.repo,
            folder_path=folder,
            allow_patterns=names,  # nothing that was put into the folder since
            repo_type="model",
            commit_message="Model exported by dartformer",
        )
    except Exception as error:  # of the network, of the account: the hub's own words say which
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub refused {upload.repo}: {reason} (sign in with `hf auth login`)."
        ) from error
    return str(getattr(commit, "oid", ""))
