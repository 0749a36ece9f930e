"""A run's checkpoints: Orbax on disk, arrays in one item and everything else as JSON beside them.

A checkpoint is self-contained: weights, optimizer, step, data cursor, specs and tokenizer, so that
a model can be rebuilt from the folder alone. Saving is atomic: a checkpoint that was not finished
does not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from loguru import logger
from orbax.checkpoint.checkpoint_managers import preservation_policy

from llm.core.hosts import is_first, said_by_all, said_by_first
from llm.core.spec import RefusedError
from llm.models.parameter import named, nested

_METRIC = "score"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held."""

    step: int
    arrays: Any
    meta: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A finished checkpoint."""

    folder: Path
    step: int
    score: float | None
    """How bad the held-out metrics were, if they were measured."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(
        self, folder: Path, *, keep: int = 2, keep_best: bool = True, background: bool = True
    ) -> None:
        """Open (and create) the folder.

        Args:
            folder: usually `<run>/checkpoints`.
            keep: newest checkpoints that are kept.
            keep_best: keep the one with the lowest score besides.
            background: write while the caller goes on. On a CPU both would share cores and memory,
                and what the copies leave there stands in the way of the next step's arrays.
        """
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC], reverse=True, n=1
                )
            )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_METRIC],  # without it scores are not written to disk
            best_mode="min",
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=background,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder.absolute()

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> Kept | None:
        """The one of the latest step."""
        steps = self.steps()
        return self._kept(steps[-1]) if steps else None

    def best(self) -> Kept | None:
        """The one with the lowest score; None if none has a score."""
        kept = [self._kept(step) for step in self.steps()]
        scores = {one: one.score for one in kept if one.score is not None}
        return min(scores, key=lambda one: scores[one]) if scores else None

    def _kept(self, step: int) -> Kept:
        metrics = self._manager.metrics(step)
        return Kept(self._folder / str(step), step, metrics[_METRIC] if metrics else None)

    def save(self, step: int, arrays: Any, meta: dict[str, Any], *, score: float | None) -> None:
        """Save, or in the background begin to: it returns when the arrays are copied then.

        Args:
            step: optimizer steps done.
            arrays: pytree of arrays.
            meta: JSON data.
            score: how bad the held-out metrics are at this step, if they were measured; the
                checkpoint with the lowest is the best.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
            ),
            metrics=None if score is None else {_METRIC: score},
            force=True,
        )

    def restore_newest(self, template: Any) -> Restored | None:
        """The newest checkpoint that can be read; None if the folder holds none at all.

        Newer ones that cannot be read are moved out of the way, to `unreadable/` beside the folder:
        the run will save these steps anew.

        Args:
            template: pytree of `jax.ShapeDtypeStruct` (with sharding) shaped like what was saved.

        Raises:
            RefusedError: there are checkpoints and none fits. None is moved then: more likely the
                model is another one than that all of them are damaged.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, problem = None, ""
            try:
                restored = self.restore(step, template)
            except (OSError, ValueError, KeyError) as error:
                problem = str(error).splitlines()[0]
            # Several processes go on from the same one.
            if problems := [*filter(None, said_by_all(problem))]:
                failures[step] = problems[0]
                continue
            self._set_aside(failures)
            return restored
        if failures:
            newest = max(failures)
            raise RefusedError(
                f"{self._folder}: none of {len(failures)} checkpoints can be read into this model; "
                f"step {newest}: {failures[newest]}"
            )
        return None

    def _set_aside(self, failures: dict[int, str]) -> None:
        """Move checkpoints that cannot be read out of the way, and say so."""
        for step, reason in failures.items() if is_first() else ():
            aside = self._folder.parent / "unreadable" / f"{step}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(aside)
            logger.warning("Checkpoint {} cannot be read, moved to {}: {}", step, aside, reason)
        if failures:
            said_by_first("")  # it is done
            self._manager.reload()

    def restore(self, step: int, template: Any) -> Restored:
        """Read one checkpoint into arrays placed as `template` says."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(template)
        result = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(template, restore_args=restore_args),
                meta=ocp.args.JsonRestore(),
            ),
        )
        return Restored(step, result.state, result.meta)

    def wait(self) -> None:
        """Block until what was begun is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish and release the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def checkpoint_folder(source: Path) -> Path:
    """The newest (or the named) checkpoint of a run folder.

    Args:
        source: a run folder, its `checkpoints` folder, or one checkpoint in it.

    Raises:
        RefusedError: there is no checkpoint.
    """
    for folder in (source / "checkpoints", source):
        steps = [p for p in folder.glob("*") if p.name.isdecimal() and (p / "meta").is_dir()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    if (source / "meta").is_dir() and (source / "state").is_dir():
        return source
    raise RefusedError(f"{source}: no checkpoint there; expected a run folder or one checkpoint")


def read_checkpoint_meta(folder: Path) -> dict[str, Any]:
    """The JSON part of one checkpoint: specs, tokenizer, step, lineage."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta: dict[str, Any] = reader.restore((folder / "meta").absolute())
    return meta


def newest_readable_meta(folder: Path) -> dict[str, Any] | None:
    """The JSON part of the newest checkpoint in a `checkpoints` folder that has one to read."""
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), reverse=True)
    for step in steps:
        try:
            return read_checkpoint_meta(folder / str(step))
        except (OSError, ValueError, KeyError):
            continue  # `Checkpoints.restore_newest` says so and puts it aside
    return None


def read_checkpoint_weights(folder: Path, template: Any, *, some: bool = False) -> Any:
    """The weights alone (averaged ones where the run kept averages), placed as `template` says.

    Args:
        folder: one checkpoint.
        template: nested dict of `jax.ShapeDtypeStruct` shaped like the model's parameters.
        some: the template names some of them only, and the others are not read.

    Raises:
        RefusedError: the checkpoint holds a model of another shape.
    """
    state = (folder / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        metadata = reader.metadata(state).item_metadata.tree
        stored = {part: _leaves(metadata[part]) for part in ("params", "ema") if metadata.get(part)}
        wanted = _leaves(template)
        found = {**stored["params"], **stored.get("ema", {})}
        _check_fit(folder, wanted, {k: v for k, v in found.items() if k in wanted or not some})
        # Averages are of what was trained, which may be a part of the weights.
        part_of = {name: "ema" if name in stored.get("ema", {}) else "params" for name in wanted}
        item = {
            part: nested({name: leaf for name, leaf in wanted.items() if part_of[name] == part})
            for part in sorted(set(part_of.values()))
        }
        restored = reader.restore(
            state,
            args=ocp.args.PyTreeRestore(
                item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
    leaves = {part: named(tree) for part, tree in restored.items()}
    return nested({name: leaves[part][name] for name, part in part_of.items()})


def _check_fit(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights have other names or shapes than the model's."""
    here = {name: tuple(leaf.shape) for name, leaf in found.items()}
    model = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    wrong = sorted(k for k in model.keys() | here.keys() if model.get(k) != here.get(k))
    if wrong:
        lines = [f"{k}: here {here.get(k)}, expected {model.get(k)}" for k in wrong[:5]]
        raise RefusedError(
            f"{folder}: {len(wrong)} weights do not fit the model: " + "; ".join(lines)
        )


def _leaves(tree: Any) -> dict[str, Any]:
    """Whatever has a shape in a tree, by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {".".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in leaves}
