"""Where the project keeps what it can make again: LIBERO's configuration, generated assets, compiled code."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$TGRPO_CACHE`, else `$XDG_CACHE_HOME/tgrpo`, else `~/.cache/tgrpo`. May not exist."""
    if own := os.environ.get("TGRPO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgrpo"
