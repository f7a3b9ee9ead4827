"""Push: an exported folder to the Hugging Face hub; the dry run checks everything that needs no
network."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from dartformer.errors import InputError
from dartformer.export import checksums

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def push(
    folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Upload an export, after verifying its checksums, as the model `repo`, made if need be.

    Args:
      folder: what `export` wrote.
      repo: "owner/name".
      private: where it is made, nobody else sees it.
      dry_run: say what would be uploaded, and upload nothing; needs neither network nor
        huggingface_hub.

    Returns:
      `{"repo", "url", "private", "files": {path: bytes}, "uploaded"}`.

    Raises:
      InputError: the folder is no intact export, the name is none, the extra is missing, or the hub
        refuses.
    """
    folder = Path(folder)
    if not REPO.fullmatch(repo):
        raise InputError(
            f"a model on the hub is named as owner/name, of letters, digits, '.', '_' and '-'; "
            f"got {repo!r}."
        )
    names = [*checksums.verify(folder), checksums.CHECKSUMS]
    found: dict[str, Any] = {
        "repo": repo,
        "url": f"https://huggingface.co/{repo}",
        "private": private,
        "files": {name: (folder / name).stat().st_size for name in sorted(names)},
    }
    if dry_run:
        return {**found, "uploaded": False}
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("pushing needs huggingface_hub: pip install 'dartformer[hub]'.")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            repo_type="model",
            commit_message="Model exported by dartformer",
        )
    except Exception as error:  # of the network, of the account: the hub's own words say which
        raise InputError(
            f"the hub did not take {repo}: {' '.join(str(error).split())[:300]} "
            f"(`hf auth login` signs in)."
        ) from error
    return {**found, "uploaded": True, "commit": str(getattr(done, "oid", ""))}
