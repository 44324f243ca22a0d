"""A short digest of anything JSON can hold: the keys of what a run folder holds are made of it."""

from __future__ import annotations

import hashlib
import json


def fingerprint(*parts: object) -> str:
    """A digest of `parts`, the same for the same values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
