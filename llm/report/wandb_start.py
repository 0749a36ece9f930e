"""How a W&B run begins: online or offline, with which settings, and where its files go."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm.report.json_files import strict
from llm.report.specs import TrackerSpec

_TABLE_SECONDS = 3


def choose_mode(wandb: Any, spec: TrackerSpec) -> tuple[str, str]:
    """online, offline or disabled, with the reason in words."""
    if spec.mode != "auto":
        return spec.mode, f"tracker.mode={spec.mode}"
    if mode := environment_mode():
        return mode, f"WANDB_MODE={mode}"
    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except Exception as error:
        return "offline", f"login failed: {brief(error)}"
    return ("online", "logged in") if logged_in else ("offline", "not logged in")


def initialise(
    wandb: Any,
    spec: TrackerSpec,
    folder: Path,
    *,
    mode: str,
    run_id: str,
    title: str,
    config: Mapping[str, Any],
    resumed: bool,
    init_seconds: float,
    finish_seconds: float,
) -> Any:
    """`wandb.init` for a run of ours; raises whatever W&B raises.

    Args:
        wandb: the module.
        spec: project, group, tags and so on.
        folder: the run folder.
        mode: online or offline.
        run_id, title, config, resumed: see `WandbTracker`.
        init_seconds: for reaching the server.
        finish_seconds: after which W&B gives up uploading at the end.
    """
    return wandb.init(
        mode=mode,
        id=run_id,
        resume="allow" if resumed else None,
        # Without it a run that somebody else left open would swallow this one.
        reinit="create_new",
        dir=str(folder),
        project=spec.project,
        entity=spec.entity,
        group=spec.group,
        job_type=spec.job_type,
        tags=list(spec.tags),
        name=spec.name or title,
        notes=spec.notes,
        # Nested as it is: W&B itself makes columns and filters such as model.n_layers of it.
        config=strict(config),
        allow_val_change=True,  # a resumed run may have more steps
        settings=wandb.Settings(
            console="off",  # it would wrap stdout under the progress display
            silent=True,
            init_timeout=init_seconds,
            finish_timeout=finish_seconds,
            disable_code=True,
            disable_job_creation=True,
        ),
    )


def prepare_for_tables(wandb: Any, run: Any) -> None:
    """Have a run log tables to disk also when its server goes away.

    Before each table W&B asks its server something of little use, by a client that it makes at the
    first one. Made while the server is away that fails, and the table with it; otherwise it waits
    for 19 s. So here is a client, made now, which waits for less.
    """
    with suppress(Exception):
        place = {"entity": run.entity, "project": run.project}
        run._cached_public_api = wandb.Api(place, timeout=_TABLE_SECONDS)


def environment_mode() -> str | None:
    """What the user's WANDB_MODE asks for, in today's words."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else None


_staged: dict[str, str] = {}


def set_environment(folder: Path) -> None:
    """Make W&B quiet and have it put its own files into the run folder.

    What the user's environment says about these goes first.

    Offline, W&B's log refers to staged files by path until it is synced, so they stay with it.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # W&B's reports about its own errors: where its server cannot be reached, they hold up the exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for name, below in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        if os.environ.get(name) in (None, _staged.get(name)):
            _staged[name] = os.environ[name] = str(folder / "wandb" / ".staging" / below)


def brief(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
