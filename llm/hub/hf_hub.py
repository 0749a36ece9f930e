"""Models from the Hugging Face hub, or from its cache on this machine, and to the hub."""

from __future__ import annotations

from pathlib import Path

from llm.core.spec import RefusedError

# No pickles, no code, no weights of other libraries.
_WANTED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
    "README.md",
]


def fetch_hf(name_with_revision: str) -> Path:
    """The folder of a model in the hub's cache, downloaded if it is not there yet.

    With HF_HUB_OFFLINE=1 the cache alone is used; so it is where the hub cannot be reached.

    Args:
        name_with_revision: `org/name`, or `org/name@revision` for a branch, tag or commit.

    Raises:
        RefusedError: it is neither on the hub nor in the cache, or may not be read.
    """
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = name_with_revision.partition("@")
    revision = revision or "main"
    endpoint, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_WANTED)
        return Path(folder)
    except HFValidationError:
        reason = f"{name!r} is no name of a model; expected org/name or org/name@revision"
    except GatedRepoError:
        reason = f"access must be asked for at {endpoint}/{name}; then log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"{endpoint}/{name} has no revision {revision}"
    except RepositoryNotFoundError:
        reason = f"{endpoint} has no model {name}, or a private one: log in with `hf auth login`"
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{endpoint}: {_why(error)}"
        reason = f"neither in the cache ({cache}) nor to be had from the hub ({why})"
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = f"{endpoint}: {_first_line(error)}"
    raise RefusedError(f"{name} at revision {revision}: {reason}")


def cached_hf(name_with_revision: str) -> Path | None:
    """The folder in the hub's cache that has the model's config.json, if there is one.

    Its weights may not be there. The hub is not asked.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = name_with_revision.partition("@")
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def push_hf(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder as a model of the hub, which is created if it is not there.

    Args:
        folder: all its files are uploaded in one commit.
        name: `org/name`.
        private: a new repository is visible to its owners only.

    Returns:
        The commit's address.

    Raises:
        RefusedError: the hub does not take it; the folder stays as it is.
    """
    import httpx
    from huggingface_hub import HfApi, constants

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Export from Lernaean"
        )
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise RefusedError(
            f"push={name}: {constants.ENDPOINT}: {_first_line(error)}. {folder} is complete: log "
            f"in (`hf auth login`), then `hf upload {name} {folder}`"
        ) from error
    return str(commit)


def _why(error: BaseException) -> str:
    """What made the hub's library look into the cache alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
