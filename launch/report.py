"""Report on a run or a sweep, in whatever state it is: python launch/report.py FOLDER."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from launch.text_words import with_text
from llm.core.spec import RefusedError
from llm.report.specs import ReportSpec

_VALUED = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-dir", "-cd")  # of Hydra


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Write report.md and its pictures into the folder, and print where."""
    try:
        start_logging()
        report(spec_from_config(cfg, ReportSpec))
    except RefusedError as error:
        refuse(error)
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")


def report(spec: ReportSpec) -> None:
    """Look at the folder as long as it is wanted, then write."""
    from llm.report.follow import follow
    from llm.report.report import write_report
    from llm.report.sweep_folder import is_sweep, read_sweep
    from llm.report.sweep_report import show_sweep, write_sweep_report

    folder = find_folder(spec.folder)
    if spec.follow:
        follow(folder)
    if is_sweep(folder):
        write_sweep_report(folder)
        show_sweep(read_sweep(folder))
    else:
        sys.stdout.write(f"{write_report(folder)}\n")


def find_folder(name: str) -> Path:
    """The folder of a run or a sweep; `last` is the newest run.

    Raises:
        RefusedError: there is none.
    """
    from llm.hub.sources import runs
    from llm.report.json_files import read_json
    from llm.report.sweep_folder import is_sweep

    if name == "last":
        found = runs()
        if not found:
            raise RefusedError("folder=last: there is no run in outputs/")
        return found[-1]
    folder = Path(name).expanduser()
    files = ("run.json", "result.json", "metrics.jsonl")
    if not is_sweep(folder) and not any((folder / file).is_file() for file in files):
        raise RefusedError(f"folder={name}: neither a run's folder nor a sweep's")
    result = read_json(folder / "result.json")
    if result and "step" not in result:
        raise RefusedError(
            f"folder={name}: of no training run; what made it has left its report there"
        )
    return folder


def program() -> None:
    """`main`, but a word that sets none of its keys is the folder, whatever is in its name."""
    keys = ("-", "hydra", *(f"{field.name}=" for field in dataclasses.fields(ReportSpec)))
    before = ("", *sys.argv[1:])  # each word's predecessor: some flags have a value
    sys.argv[1:] = [
        word if word.startswith(keys) or flag in _VALUED else f"folder={word}"
        for flag, word in zip(before, sys.argv[1:], strict=False)
    ]
    with_text("folder", main)()


if __name__ == "__main__":
    start(program)
