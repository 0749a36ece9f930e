"""A W&B dashboard for the runs of a project: python launch/dashboard.py project=NAME."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from llm.core.spec import RefusedError
from llm.report.specs import DashboardSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
def main(cfg: DictConfig) -> None:
    """Save the dashboard and print where it is; with dry_run=true its file instead."""
    try:
        start_logging()
        spec = spec_from_config(cfg, DashboardSpec)
        where = make(spec, Path(HydraConfig.get().runtime.output_dir))
    except RefusedError as error:
        refuse(error)
    sys.stdout.write(f"{where}\n")


def make(spec: DashboardSpec, folder: Path) -> str:
    """Write or save the dashboard; returns its file or address."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise RefusedError("wandb-workspaces is not installed: pip install -e '.[dashboard]'")
    return write(spec, folder) if spec.dry_run else save(spec)


def write(spec: DashboardSpec, folder: Path) -> str:
    """The dashboard's JSON as dashboard.json in a folder."""
    from llm.report.dashboard import dashboard, to_json
    from llm.report.json_files import write_json

    path = folder / "dashboard.json"
    write_json(path, to_json(dashboard(spec, spec.entity or "ENTITY")))
    return str(path)


def save(spec: DashboardSpec) -> str:
    """The dashboard in W&B.

    Raises:
        RefusedError: not logged in, or W&B does not take it.
    """
    import wandb

    from llm.report.dashboard import dashboard

    if not wandb.login(prompt=False, verify=False):
        raise RefusedError(
            "not logged in to W&B: wandb login, or dry_run=true to look at the dashboard's JSON"
        )
    try:
        entity = spec.entity or wandb.Api().default_entity
        url = dashboard(spec, entity).save().url if entity else None
    except Exception as error:  # W&B's have no base in common
        raise RefusedError(f"project={spec.project}: W&B did not save it: {error}") from error
    if url is None:
        raise RefusedError("entity=null: the account has no default; name a W&B user or team")
    return str(url)


if __name__ == "__main__":
    start(main)
