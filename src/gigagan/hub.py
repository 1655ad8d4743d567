"""Models of the Hugging Face hub: OWNER/NAME[@REVISION] becomes a directory, and a directory a commit there.

Only the files that model_index.json names are fetched, and nothing of a repository is run. A full commit hash that was
fetched before needs no connection.
"""

import re
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gigagan.errors import CheckpointError, ConfigError, MissingExtra
from gigagan.model_files import MODEL_INDEX, NOTICE, PICKLES, read_index

TIMEOUT_SEC = 10
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def is_hub_id(text: str) -> bool:
    """Whether it could be OWNER/NAME or OWNER/NAME@REVISION."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def check_hub_id(text: str) -> None:
    """Raises CheckpointError unless it is OWNER/NAME."""
    if not is_hub_id(text) or "@" in text:
        raise CheckpointError(f"{text[:100]!r} is no hub id; expected OWNER/NAME of letters, digits, '-', '_' and '.'")


def at_revision(text: str, revision: str) -> str:
    """OWNER/NAME@REVISION of OWNER/NAME and its revision. Raises ConfigError unless it becomes one."""
    repo, _, said = text.partition("@")
    if said and said != revision:
        raise ConfigError(f"{text[:100]}: revision={revision[:100]!r} came too; give one of the two")
    if not is_hub_id(f"{repo}@{revision}"):
        raise ConfigError(
            f"revision={revision[:100]!r} of {text[:100]!r} can't be; expected a branch, tag or commit of OWNER/NAME"
        )
    return f"{repo}@{revision}"


def fetched(hub_id: str) -> Path:
    """The directory of a model of the hub, in its cache; unless it is there, it is fetched.

    A branch or tag is looked up each time (the cached one serves where the hub can't be reached), a commit is final.
    Raises CheckpointError where it isn't there, isn't a model of ours, or can't be fetched.
    """
    match = _HUB_ID.fullmatch(hub_id)
    assert match is not None, hub_id
    repo, commit = match[1], match[2] or "main"
    api = _hub().HfApi()
    if _COMMIT.fullmatch(commit) and (folder := _cached(repo, commit)):
        return folder
    try:  # once, where a download would try for half a minute
        commit = api.model_info(repo, revision=commit, timeout=TIMEOUT_SEC).sha
    except Exception as error:  # httpx's, requests' or the hub's own, as its version has it
        if not _status(error) and (folder := _cached(repo, commit)):
            return folder
        raise _told(hub_id, error) from None
    if folder := _cached(repo, commit):
        return folder
    try:
        return _download(repo, commit)
    except CheckpointError:
        raise
    except Exception as error:
        raise _told(hub_id, error) from None


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a model directory in one commit; OWNER/NAME@COMMIT. Raises CheckpointError."""
    index = read_index(folder)
    api = _hub().HfApi(library_name="open-gigagan")
    files = [MODEL_INDEX, NOTICE, *index["sha256"]]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="A model of open-gigagan"
        )
    except Exception as error:
        raise _told(repo, error) from None
    return f"{repo}@{commit.oid}"


def _cached(repo: str, revision: str) -> Path | None:
    """The directory in the hub's cache, where it holds every file that the index names. Asks nobody."""
    index = _hub().try_to_load_from_cache(repo, MODEL_INDEX, revision=revision)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    return folder if all((folder / name).is_file() for name in _names(folder, repo)) else None


def _download(repo: str, commit: str) -> Path:
    hub = _hub()
    fetch = partial(hub.hf_hub_download, repo, revision=commit, etag_timeout=TIMEOUT_SEC)
    folder = Path(fetch(MODEL_INDEX)).parent
    for name in _names(folder, repo):
        fetch(name)
    with suppress(hub.errors.EntryNotFoundError):  # a model may have no credits to give
        fetch(NOTICE)
    return folder


def _names(folder: Path, repo: str) -> list[str]:
    """Files of the index, each inside the directory, none a pickle. Raises CheckpointError."""
    index = read_index(folder)
    for name in index["sha256"]:
        path = PurePosixPath(name)
        pickled = path.suffix in PICKLES and not ("export" in index and path.suffix == ".bin")  # OpenVINO's weights
        if not _FILE.fullmatch(name) or ".." in path.parts or pickled:
            raise CheckpointError(
                f"{repo}: {MODEL_INDEX} names the file {name[:60]!r}; only plain safe ones are fetched"
            )
    return list(index["sha256"])


def _told(what: str, error: Exception) -> CheckpointError:
    """What went wrong between us and the hub, in one line."""
    status = _status(error)
    if status == 404:
        return CheckpointError(
            f"{what}: no such directory here, and the hub has no such model or revision (private? hf auth login)"
        )
    if status in (401, 403):
        return CheckpointError(f"{what}: the hub refuses ({status}); check the name, or log in by hf auth login")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CheckpointError(
        f"{what}: no such directory here, and as OWNER/NAME of the hub it can't be fetched ({reason}); check the path"
    )


def _status(error: Exception) -> int:
    """The HTTP status behind an error of the hub; 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("huggingface-hub", "hub") from None
    return huggingface_hub
