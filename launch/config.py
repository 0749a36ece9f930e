"""From Hydra's configuration to our specs, with one clear message when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import secrets
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from launch.help import explained_keys, option_groups
from launch.new_folders import forget, will_be_made
from launch.parallel import device_shares
from launch.processes import join_run, problem_anywhere
from launch.text_words import paths_quoted
from llm.core.hardware import HardwareSpec
from llm.core.launched import launched_by
from llm.core.spec import RefusedError, Spec, spec_from_json
from llm.data.specs import DataSpec, DocumentsSpec, PackedSpec, PaddedSpec
from llm.eval.specs import EvaluateSpec
from llm.generate.chat_spec import ChatSpec
from llm.generate.specs import GenerateSpec
from llm.hub.specs import ExportSpec
from llm.models.specs import GPTSpec, LlamaSpec
from llm.plan.specs import PlanSpec
from llm.report.specs import DashboardSpec, ReportSpec
from llm.train.experiment import ExperimentSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.journey_spec import JourneySpec
from llm.train.specs import (
    AdamWSpec,
    ConstantSpec,
    LinearSpec,
    MuonSpec,
    OptaxSpec,
    PretrainSpec,
    SFTSpec,
    WarmupCosineSpec,
    WarmupStableDecaySpec,
)
from llm.train.tokenizer_spec import TokenizerTrainingSpec

S = TypeVar("S", bound=Spec)

MISCOMPOSED = 1  # exit status: Hydra could not make a configuration of these words
REFUSED = 2  # exit status: it could, and we do not accept it

SCHEMAS: dict[str, dict[str, type[Spec]]] = {
    "": {
        "experiment": ExperimentSpec,
        "plan": PlanSpec,
        "generate": GenerateSpec,
        "chat": ChatSpec,
        "evaluate": EvaluateSpec,
        "export": ExportSpec,
        "tokenizer": TokenizerTrainingSpec,
        "journey": JourneySpec,
        "dashboard": DashboardSpec,
        "report": ReportSpec,
    },
    "model": {"gpt": GPTSpec, "llama": LlamaSpec},
    "data": {"packed": PackedSpec, "padded": PaddedSpec},
    "trainer": {"pretrain": PretrainSpec, "sft": SFTSpec, "grpo": GRPOSpec},
    "optimizer": {"adamw": AdamWSpec, "muon": MuonSpec, "optax": OptaxSpec},
    "schedule": {
        "warmup_cosine": WarmupCosineSpec,
        "warmup_stable_decay": WarmupStableDecaySpec,
        "linear": LinearSpec,
        "constant": ConstantSpec,
    },
    "hardware": {"profile": HardwareSpec},
}


def register() -> None:
    """Tell Hydra the schemas and OmegaConf our resolvers (once per process is enough)."""
    # Our options of hydra/launcher bear the names of the plugins' own, to which they add; Hydra 1.3
    # does as it did before, but says that later versions will not.
    warnings.filterwarnings(
        "ignore", r"\s*'hydra/.*is validated against ConfigStore schema with the same name"
    )
    store = ConfigStore.instance()
    for group, specs in SCHEMAS.items():
        for name, spec in specs.items():
            store.store(group=f"schema/{group}".rstrip("/"), name=name, node=schema(spec))
    OmegaConf.register_new_resolver(
        "run_id", lambda: secrets.token_hex(3), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("point_folder", point_folder, replace=True)
    OmegaConf.register_new_resolver("device_shares", device_shares, replace=True)
    OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)
    OmegaConf.register_new_resolver("explained_keys", explained_keys, replace=True)


def folder_name(overrides: str) -> str:
    """Words as a part of a folder's name: nothing that programs read anything into in a path.

    Checkpoints below a folder with brackets in its name cannot be read again.
    """
    kept = re.sub(r"[^\w.,=+@-]", "", overrides.replace("/", "."))
    return kept[:120] or "defaults"  # not too long for a file system


def point_folder(sweep: str, number: int, overrides: str, resume: str | None) -> str:
    """The name of a point's folder: its number and its overrides.

    A point of a sweep that goes on keeps its folder, also if new points stand before it now.
    """
    name = folder_name(overrides)
    usual = f"{number}-{name}"
    if str(resume).lower() != "true" or (Path(sweep) / usual).exists():
        return usual
    there = [p.name for p in Path(sweep).glob("[0-9]*-*") if p.name.partition("-")[2] == name]
    return there[0] if len(there) == 1 else usual


_schemas: dict[type[Spec], Any] = {}


def schema(spec: type[Spec]) -> Any:
    """A spec's fields as a structured config.

    A frozen dataclass would be read-only to every override, so this makes a thawed copy of it. A
    field that takes one of several specs is left open: the config group that fills it brings its
    own schema. There is one copy per spec, since OmegaConf compares schemas by identity.
    """
    if spec not in _schemas:
        _schemas[spec] = _thawed(spec)
    return _schemas[spec]


def _thawed(spec: type[Spec]) -> Any:
    hints = typing.get_type_hints(spec)
    fields: list[tuple[str, Any, Any]] = [("_target_", str, _target(spec))]
    for field in dataclasses.fields(spec):
        hint = hints[field.name]
        if any(typing.get_origin(arg) is Sequence for arg in typing.get_args(hint)):
            hint = Any  # `str | Sequence[str]`: OmegaConf has no such unions; the spec checks it
        if _is_spec(hint):
            if hint.__subclasses__():
                fields.append((field.name, Any, dataclasses.field(default=MISSING)))
            else:
                nested = schema(hint)
                fields.append((field.name, nested, dataclasses.field(default_factory=nested)))
            continue
        args = typing.get_args(hint)
        if typing.get_origin(hint) in (list, tuple, Sequence):  # OmegaConf knows lists only
            hint = list[schema(args[0]) if _is_spec(args[0]) else args[0]]  # type: ignore[misc]
        if isinstance(field.default, tuple):
            default = dataclasses.field(default_factory=functools.partial(list, field.default))
        elif field.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=field.default_factory)
        elif field.default is not dataclasses.MISSING:
            default = dataclasses.field(default=field.default)
        else:
            default = dataclasses.field(default=MISSING)
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(spec.__name__, fields)


def _is_spec(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Spec)


def _target(spec: type[Spec]) -> str:
    return f"{spec.__module__}.{spec.__qualname__}"


def spec_from_config(cfg: DictConfig, expected: type[S]) -> S:
    """The composed configuration as a checked spec.

    Raises:
        RefusedError: with one line that names the key, its value and what was expected.
    """
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    missing = [str(key) for key in ours if OmegaConf.is_missing(ours, key)]
    if missing:
        raise RefusedError(f"{missing[0]}: a value is needed and none was given")
    try:
        data = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RefusedError(f"{error.full_key}: {_first_line(error)}") from None
    spec = spec_from_json(data)
    if not isinstance(spec, expected):
        raise RefusedError(f"the root of the configuration must be a {_target(expected)}")
    return spec


def start(program: Callable[[], Any]) -> None:
    """Run an entry point; whatever is wrong with its words becomes one line on standard error.

    Exit status: 1 if Hydra cannot compose a configuration, 2 if we do not accept it.
    """
    sys.argv[1:] = paths_quoted(sys.argv[1:])
    wants_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        program()
    except RefusedError as error:
        refuse(error)
    except Exception as error:
        trace = error.__traceback__
        if wants_all or trace is None:
            raise
        while trace is not None and trace.tb_frame.f_code.co_name != "run_job":
            trace = trace.tb_next
        if trace is not None:  # a job failed: how Hydra came to run it is of no interest
            raise error.with_traceback(trace.tb_next)  # noqa: B904
        if not isinstance(error, (HydraException, OmegaConfBaseException, ValueError)):
            raise
        refuse(explained(error), MISCOMPOSED)


def refuse(reason: Exception | str, status: int = REFUSED) -> typing.NoReturn:
    """End the program with the reason and an exit status; no folder is left of it."""
    forget()
    sys.stderr.write(f"Refused: {reason}\n")
    raise SystemExit(status)


def explained(error: Exception) -> str:
    """Hydra's error in one line, without its advice to add keys with a plus."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option. {group} has {', '.join(error.options)}"
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        has = ""
        if dataclasses.is_dataclass(cause.object_type):
            keys = (f.name for f in dataclasses.fields(cause.object_type))
            has = f". {cause.object_type_str} has {', '.join(k for k in keys if k != '_target_')}"
        return f"{cause.full_key}: no such key{has}"
    if lacking := re.match(r"Could not override '([\w/]+)'", str(error)):
        name = lacking[1]
        return f"{name}: no group of this program. It may have keys {name}.KEY, see --help"
    if isinstance(error, OverrideParseException):
        problem = [line for line in error.message.splitlines() if not line.startswith("See ")]
        return f"{error.override}: expected key=value ({problem[-1]})"
    if isinstance(cause, OmegaConfBaseException):
        return f"{_first_line(error).removeprefix('Error merging override ')}: {_first_line(cause)}"
    return f"{' '.join(sys.argv[1:])}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def start_logging(level: str = "INFO", prefix: str = "") -> None:
    """Our log lines to the terminal; libraries that explain their every move are not asked to."""
    from llm.report.terminal import setup_logging

    setup_logging(level, prefix)
    for library in ("absl", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists the backends that are not there


class RefuseWords(Callback):
    """Checks the words before Hydra creates a folder for them, or for the jobs of a multirun."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the folder."""
        try:
            self.check(config)
        except RefusedError as error:
            # An exception would only become a warning here: Hydra guards itself from callbacks.
            refuse(error)
        will_be_made(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing what all jobs share and the first job."""
        will_be_made(Path(config.hydra.sweep.dir))

    def check(self, config: DictConfig) -> None:
        """Refuse what no spec accepts, and a plan for a device that nobody has heard of.

        Raises:
            RefusedError: in one line.
        """
        spec = spec_from_config(config, Spec)
        if isinstance(spec, PlanSpec) and spec.hardware.device == "gpu":
            from llm.plan.target import target_by_name

            target_by_name(spec.hardware)


class RefuseTokenizer(RefuseWords):
    """Checks the words of launch/tokenizer.py."""

    def check(self, config: DictConfig) -> None:
        """Refuse texts and tokenizers that are not there."""
        from llm.hub.sources import check_tokenizer_source

        spec = spec_from_config(config, TokenizerTrainingSpec)
        _check_sources(spec.data)
        for source in spec.compare:
            check_tokenizer_source(source, "compare")


class RefuseEvaluation(RefuseWords):
    """Checks the words of an evaluation."""

    def check(self, config: DictConfig) -> None:
        """Refuse texts, checkpoints and tasks that are not there."""
        from llm.eval.early_checks import check_words

        spec = spec_from_config(config, EvaluateSpec)
        try:
            _check_source(spec.data)
        except RefusedError as error:
            raise RefusedError(f"data.{error}") from None
        check_words(spec)


class RefuseEarly(Callback):
    """Checks a run, or each point of a sweep, and what the processes of a run must agree on."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing the configuration and making the run's folder."""
        from launch.job import as_in_its_sweep
        from llm.train.run_folder import check_run_folder

        problem = ""
        try:
            experiment = spec_from_config(config, ExperimentSpec)
            join_run(config, experiment.hardware)
            folder = Path(config.hydra.run.dir)
            experiment = as_in_its_sweep(experiment, folder)
            check_run_folder(experiment, folder)
            check_what_is_there(experiment)
        except RefusedError as error:
            problem = str(error)
        except Exception as error:
            if launched_by(os.environ) is None:
                raise
            problem = f"{type(error).__name__}: {error}"
        # One process alone must not stop here while the others wait for it.
        if problem := problem_anywhere(problem):
            refuse(problem)
        if config.hydra.output_subdir is not None:  # of several processes, the first
            will_be_made(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra between composing what all points share and the first job."""
        from launch.sweep import begin

        begin(config)


def check_what_is_there(experiment: ExperimentSpec) -> None:
    """What specs alone cannot tell: are files and device there, is the optimizer known to optax?"""
    _check_sources(experiment.data)
    _check_tokenizer(experiment)
    try:
        experiment.trainer.check_available()
    except RefusedError as error:
        raise RefusedError(f"trainer.{error}") from None
    optimizer = experiment.trainer.optimizer
    if isinstance(optimizer, OptaxSpec):
        from llm.train.optimizers import find_optax

        find_optax(optimizer.optimizer, optimizer.options)
    if experiment.trainer.freeze:
        from llm.train.trainable import trained_names

        model = experiment.model.replace(vocab_size=experiment.model.vocab_size or 1)
        trained_names(model, tuple(experiment.trainer.freeze))
    if experiment.hardware.require:
        from llm.core.machine import claim

        claim(experiment.hardware)


def _check_tokenizer(experiment: ExperimentSpec) -> None:
    """A tokenizer that lies on this machine must be readable, and the model have room for it."""
    path, model = experiment.data.tokenizer.path, experiment.model
    if path is None or path.startswith("hf:"):
        return
    from llm.data.tokenizer import Tokenizer

    try:
        size = Tokenizer.load(path, experiment.data.tokenizer.separator).vocab_size
    except RefusedError as error:
        raise RefusedError(f"data.tokenizer.{error}") from None
    if model.vocab_size is not None and model.vocab_size < size:
        raise RefusedError(
            f"model.vocab_size={model.vocab_size}: data.tokenizer.path={path} has {size} tokens; "
            "set it to null to take the tokenizer's"
        )


def _check_sources(data: DataSpec) -> None:
    for source in data.sources:
        try:
            _check_source(source)
        except RefusedError as error:
            raise RefusedError(f"data.{error}") from None


def _check_source(source: DocumentsSpec) -> None:
    if source.source in ("text", "jsonl", "parquet") and source.path is not None:
        from llm.data.file_sources import find_files

        find_files(source.path, None)
    if source.source == "task":
        from llm.data.tasks.registry import kinds, tasks

        try:
            tasks(kinds(source.path), 1)
        except RefusedError as error:
            raise RefusedError(f"path={source.path}: {error}") from None


register()
