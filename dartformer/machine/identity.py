"""Identity: fingerprints of what a checkpoint or a result belongs to, compared before it is used."""

import hashlib
import json
from collections.abc import Mapping

from dartformer.errors import InputError

Identity = Mapping[str, str]
"""By aspect ("task", "data", "model", "space", "search", "training", "genotype", "test") a
fingerprint. Empty for what was made before there were identities, up to version 0.1.0."""

LETTERS = 16
"""Of a fingerprint: 64 bits, far more than the files of a workdir can confuse."""

WORDS = {
    "task": "the task's options",
    "data": "the data (rows, labels or parts)",
    "test": "the test part",
    "model": "the model's sizes",
    "space": "the search space",
    "search": "the search's settings",
    "training": "the training's settings",
    "genotype": "the genotype",
    "checkpoint": "the checkpoint's files",
    "text": "the text",
}


def fingerprint(data: object) -> str:
    """Of plain data: equal data have equal fingerprints in every process."""
    # Sorted keys, because the order of a dict is no difference. Not Python's hash(), which differs
    # from one process to the next.
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode()).hexdigest()[:LETTERS]


def different(saved: Identity, now: Identity) -> list[str]:
    """The aspects that both know and in which they differ."""
    aspects = []
    for aspect, value in saved.items():
        # What only one side knows was added or dropped between versions, and proves nothing.
        if aspect in now and value != now[aspect]:
            aspects.append(aspect)
    return aspects


def require_same(saved: Identity, now: Identity, name: str, remedy: str) -> None:
    """Raise `InputError` where two identities differ.

    Args:
      saved: noted with `name` when it was written.
      now: of the run that would use it.
      name: of the file or folder, for the message.
      remedy: what the user can do, as a sentence.
    """
    aspects = different(saved, now)
    if not aspects:
        return
    parts = []
    for aspect in aspects:
        word = WORDS.get(aspect, aspect)
        parts.append(f"{word} ({saved[aspect]} there, {now[aspect]} now)")
    raise InputError(f"{name} was made with something else: {'; '.join(parts)} differ. {remedy}")
