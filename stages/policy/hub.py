"""Checkpoints of the Hugging Face hub: `owner/name` or `owner/name@revision` -> a folder in the hub's own cache.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Only what a checkpoint needs is
fetched, and no code. A download that was cut off keeps its whole files; run again, it fetches the rest.
"""

import errno
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.errors import ArtifactError, TgrpoError

log = logging.getLogger(__name__)

FILES = ["*.json", "*.safetensors", "tokenizer.model"]
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubId:
    """A model of the hub; without a revision its main branch."""

    repo: str  # owner/name
    revision: str | None = None  # branch, tag or commit

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse(name: str) -> HubId | None:
    """The hub id that a name spells, or None. A name whose first part is a folder here means a local path."""
    found = _ID.fullmatch(name)
    if not found or ".." in name or Path(name.split("/")[0]).is_dir():
        return None
    return HubId(found["repo"], found["revision"])


@dataclass(frozen=True)
class Download:
    """What fetching a model would take."""

    commit: str  # the version that its revision names now
    files: int  # that the cache lacks
    nbytes: int  # of these


def fetch(model: HubId) -> Path:
    """The folder of a model's files, downloaded as far as the cache lacks them.

    When the hub cannot be asked, what the cache has whole is used. A commit that the cache has whole is not asked for.

    Raises:
        ArtifactError: no such model or revision, one that needs a login, one that is no checkpoint, or no connection.
        TgrpoError: the disk is too small, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    cached = _cached(model)
    if cached and cached.name == model.revision:
        return cached
    try:
        download = plan(model)
    except TgrpoError:
        if cached is None:
            raise
        log.info("%s: the hub cannot be asked; taking version %s from the cache", model, cached.name[:12])
        return cached
    refuse_small_disk(model, download)
    if download.files:
        log.info("downloading %s: %s in %d files", model, _human(download.nbytes), download.files)
    try:  # by commit: the version that was planned, whatever is pushed meanwhile
        return Path(snapshot_download(model.repo, revision=download.commit, allow_patterns=FILES))
    except Exception as error:
        raise _explained(model, error) from None


def plan(model: HubId) -> Download:
    """What `fetch` would download; asks the hub and fetches nothing.

    Raises:
        ArtifactError: no such model or revision, one that needs a login, or one that is no checkpoint.
        TgrpoError: no connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each try; we say how it ended
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        files = snapshot_download(model.repo, revision=model.revision, allow_patterns=FILES, dry_run=True)
    except Exception as error:  # of the library, of its HTTP client, of the system
        raise _explained(model, error) from None
    assert isinstance(files, list)
    if not any(file.filename in ("config.json", "adapter_config.json") for file in files):
        raise ArtifactError(f"{model} is no checkpoint: it has no config.json; name an OpenVLA model of the hub")
    lacking = [file for file in files if file.will_download]
    return Download(files[0].commit_hash, len(lacking), sum(file.file_size or 0 for file in lacking))


def refuse_small_disk(model: HubId, download: Download) -> None:
    """Raises TgrpoError when the download does not fit on the disk of the hub's cache."""
    from huggingface_hub import constants

    folder = cache = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if download.nbytes > free:
        raise TgrpoError(
            f"{model} needs {_human(download.nbytes)} of disk, but {cache} has {_human(free)} free; free some, or set "
            "HF_HOME to a folder on a larger disk"
        )


def _cached(model: HubId) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=FILES, local_files_only=True))
    except OSError:  # nothing there, or not whole
        return None


def _explained(model: HubId, error: BaseException) -> TgrpoError:
    """The library's exception, which may wrap what matters, as one line with the remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(_causes(error))
    hub = constants.ENDPOINT

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in chain):
        return TgrpoError(f"{model}: the disk became full; free some space, or set HF_HOME to a folder on a larger one")
    if among(GatedRepoError):
        return ArtifactError(
            f"{model} is gated: ask for access at {hub}/{model.repo}, then run `hf auth login` or set HF_TOKEN"
        )
    if among(RevisionNotFoundError):
        return ArtifactError(
            f"{model}: {hub} has no such revision of it; name a branch, tag or commit that {hub}/{model.repo} lists"
        )
    if among(RepositoryNotFoundError):
        return ArtifactError(
            f"{model} is neither a folder here nor a public model of {hub}; check the name, or run `hf auth login` "
            "if it is private"
        )
    if among(OfflineModeIsEnabled):
        return ArtifactError(
            f"{model} is not whole in the cache and HF_HUB_OFFLINE is set; unset it, or name a local folder"
        )
    statuses = [cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)]
    if statuses and statuses[0] in (401, 403):
        return ArtifactError(f"{model}: {hub} refuses access ({statuses[0]}); run `hf auth login` or set HF_TOKEN")
    reason = (
        f"status {statuses[0]}" if statuses else (str(chain[-1]).strip().split("\n")[0] or type(chain[-1]).__name__)
    )
    return TgrpoError(
        f"{model} cannot be downloaded from {hub} ({reason}); check the connection and run it again "
        "(whole files are kept), or name a local folder"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _human(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
