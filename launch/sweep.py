"""A multirun from its words to its report; what happens in each of its jobs is in `launch.job`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from launch.config import spec_from_config
from launch.early_checks import check_what_is_there
from launch.hydra_errors import explained
from launch.job import RECORD, signals
from launch.parallel import jobs_at_once, launcher_name
from launch.points import Points, points_of, value_of
from launch.program import MISCOMPOSED, refuse, start_logging
from launch.sweep_objective import with_objective
from llm.core.launched import launched_by
from llm.core.spec import RefusedError
from llm.report.json_files import read_json, write_json
from llm.report.run_files import now
from llm.report.specs import TrackerSpec
from llm.train.experiment import ExperimentSpec
from llm.train.meaning_of_last import meaning_of_last, with_meaning

_begun: list[Path] = []


def begin(config: DictConfig) -> None:
    """Check all of a sweep, then make its folder.

    Args:
        config: composed of the words that all points share, Hydra's own part included. It is
            changed so that folders of points are named by what differs between them.
    """
    start_logging()
    try:
        if (launcher := launched_by(os.environ)) is not None:
            raise RefusedError(
                f"-m in one of several processes ({launcher}): each would run the whole sweep; let "
                "hydra/launcher=submitit_slurm give each job its processes"
            )
        points = points_of(config)
        folder = Path(config.hydra.sweep.dir)
        before = _before(config, folder)
        words = [str(word) for word in config.hydra.overrides.task]
        hydra_words = [str(word) for word in config.hydra.overrides.hydra]
        _check_plugins(config)
        _check_tasks(config.hydra.launcher)
        _settle_optuna(config, hydra_words)
        _name_by(points.swept, config)
        experiments, last = _checked(points, config, folder, before.get("last") or {})
        _check_sweeper(config, points, experiments[0])
        objective = with_objective(experiments)
    except RefusedError as error:
        refuse(error)
    except HydraException as error:
        refuse(explained(error), MISCOMPOSED)
    folder.mkdir(parents=True, exist_ok=True)
    each = [{key: value_of(point, key) for key in points.swept} for point in points.words]
    record = {
        "words": words,
        "hydra": [w for w in hydra_words if not w.startswith(("hydra.mode=", "hydra.sweep.dir="))],
        "objective": objective,
        "swept": points.swept,
        "points": each if points.complete else None,
        "last": last,
        "started": before.get("started") or now(),
        "ended": None,
    }
    write_json(folder / RECORD, record)
    _begun.append(folder)
    signals(workers=launcher_name(config.hydra.launcher) != "BasicLauncher")


def reported(program: Callable[[], Any]) -> None:
    """Run the program; if it is a sweep, end it with a report, whatever became of its jobs.

    Exit status: 1 if a job failed.
    """
    failed = 0
    try:
        program()
    except Exception as error:
        if not _begun or not _of_a_job(error):
            raise
    finally:
        if _begun:
            failed = _end(_begun.pop())
    if failed and not signals()():
        raise SystemExit(1)


def _end(folder: Path) -> int:
    """Write the report; returns how many points failed."""
    from llm.report.sweep_folder import read_sweep
    from llm.report.sweep_report import show_sweep, write_sweep_report

    write_json(folder / RECORD, {**read_json(folder / RECORD), "ended": now()})
    write_sweep_report(folder)
    sweep = read_sweep(folder)
    show_sweep(sweep)
    if signals().left_behind:
        # A compilation that was left behind holds up the interpreter's normal end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return sum(point.status in ("failed", "killed") for point in sweep.points)


def _of_a_job(error: Exception) -> bool:
    """Raised by Hydra when it looks at what a job returned; the job has said why already."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "return_value":
            return True
        trace = trace.tb_next
    return False


def _before(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The record of the sweep that goes on; empty for a new one."""
    if str(config.resume).lower() == "true":
        return read_json(folder / RECORD)
    if (folder / RECORD).exists():
        raise RefusedError(
            f"{folder}: holds a sweep already; resume={folder} goes on with it, or choose another "
            "hydra.sweep.dir"
        )
    return {}


def _check_plugins(config: DictConfig) -> None:
    for key in ("launcher", "sweeper"):
        module = str(config.hydra[key]._target_).rpartition(".")[0]
        package = ".".join(module.split(".")[:2])
        if package.startswith("hydra_plugins.") and not _installed(package):
            name = package.removeprefix("hydra_plugins.").replace("_", "-")
            raise RefusedError(
                f"hydra/{key}={config.hydra.runtime.choices[f'hydra/{key}']}: {name} is not "
                f"installed; pip install {name}"
            )


def _check_tasks(launcher: DictConfig) -> None:
    """Submitit's own processes on this machine do not find each other, as those of Slurm do."""
    tasks = (launcher.get("nodes") or 1) * (launcher.get("tasks_per_node") or 1)
    if launcher_name(launcher) == "LocalLauncher" and tasks > 1:
        raise RefusedError(
            f"hydra.launcher: {tasks} tasks of submitit_local would each run the whole job; one "
            "process has all GPUs of its job (hydra.launcher.gpus_per_node), and submitit_slurm "
            "can give a job several"
        )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _settle_optuna(config: DictConfig, words: Sequence[str]) -> None:
    """What we would have instead of its defaults, unless the words say otherwise.

    An option of ours cannot bear the name of one that has a defaults list.
    """
    if not str(config.hydra.sweeper._target_).endswith(".OptunaSweeper"):
        return
    ours = {
        "max_failure_rate": 1.0,  # a run that fails is a point like others
        "n_jobs": jobs_at_once(config.hydra.launcher),  # proposed together
    }
    for key, value in ours.items():
        if not any(word.startswith(f"hydra.sweeper.{key}=") for word in words):
            config.hydra.sweeper[key] = value


def _name_by(swept: Sequence[str], config: DictConfig) -> None:
    """Name folders by the swept keys only: Hydra does so by every word."""
    words = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    same = {w.key_or_group for w in words if w.get_key_element() not in swept}
    same |= set(config.hydra.job.config.override_dirname.exclude_keys)
    quoted = ",".join(f"'{key}'" for key in sorted(same))
    with open_dict(config.hydra):
        config.hydra.overrides.hydra.append(
            f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"
        )


def _checked(
    points: Points, config: DictConfig, folder: Path, last: dict[str, str]
) -> tuple[list[ExperimentSpec], dict[str, str]]:
    """The experiment of each point, and what `last` means in this sweep, also where it goes on.

    Raises:
        RefusedError: one of them cannot work; with the words of that point.
    """
    from launch.sweep_plan import Plan

    loader = GlobalHydra.instance().config_loader()
    plan = Plan(config.hydra.launcher)
    experiments: list[ExperimentSpec] = []
    problems: dict[str, list[int]] = {}
    for number, words in enumerate(points.words):
        composed = loader.load_sweep_config(config, list(words))
        with open_dict(composed.hydra.job):
            composed.hydra.job.num = number
            composed.hydra.job.id = str(number)
        try:
            experiment = spec_from_config(composed, ExperimentSpec)
            last = meaning_of_last(with_meaning(experiment, last)) | last
            experiment = with_meaning(experiment, last)
            own = folder / str(OmegaConf.select(composed, "hydra.sweep.subdir"))
            _check_point(experiment, own)
            check_what_is_there(experiment)
            plan.check(experiment, own)
            experiments.append(experiment)
        except RefusedError as error:
            problems.setdefault(str(error), []).append(number)
    if problems:
        raise RefusedError(_in_words(problems, points))
    _point_out_duplicates(experiments, points)
    return experiments, last


def _check_point(experiment: ExperimentSpec, folder: Path) -> None:
    from llm.train.run_folder import check_run_folder

    check_run_folder(experiment, folder)


def _in_words(problems: dict[str, list[int]], points: Points) -> str:
    problem, numbers = next(iter(problems.items()))
    if len(numbers) == len(points.words):
        return problem
    more = sum(len(n) for n in problems.values()) - 1
    also = f" ({more} more of {len(points.words)} points cannot work either)" if more else ""
    return f"point {numbers[0]}, {_called(points, numbers[0])}: {problem}{also}"


def _called(points: Points, number: int) -> str:
    words = points.words[number]
    return " ".join(f"{key}={value_of(words, key)}" for key in points.swept)


def _point_out_duplicates(experiments: Sequence[ExperimentSpec], points: Points) -> None:
    from loguru import logger

    first: dict[ExperimentSpec, int] = {}
    for number, experiment in enumerate(experiments):
        same = first.setdefault(experiment.replace(tracker=TrackerSpec()), number)
        if same != number and points.complete:
            logger.warning(
                "points {} ({}) and {} ({}) are the same experiment, which is run twice.",
                same, _called(points, same), number, _called(points, number),
            )  # fmt: skip


def _check_sweeper(config: DictConfig, points: Points, experiment: ExperimentSpec) -> None:
    """What a sweeper that optimises must agree with."""
    sweeper = config.hydra.sweeper
    if points.complete:
        return
    if experiment.resumes:
        raise RefusedError(
            "resume=true: what this sweeper has learned is in memory only, so its sweep cannot go "
            "on; start a new one"
        )
    if sweeper.get("storage") is not None:
        raise RefusedError(
            f"hydra.sweeper.storage={sweeper.storage}: this sweeper works in memory only"
        )
    direction = sweeper.get("direction")
    if OmegaConf.is_list(direction):
        raise RefusedError(f"hydra.sweeper.direction={direction}: a run has one objective")
    word = str(getattr(direction, "name", direction))
    better = {-1: "minimize", 1: "maximize"}.get(experiment.goal.sign, word)
    if direction is not None and word != better:
        raise RefusedError(
            f"hydra.sweeper.direction={word}: {experiment.goal.metric} is to be as "
            f"{'low' if better == 'minimize' else 'high'} as can be; say "
            f"hydra.sweeper.direction={better}"
        )
