"""A model's whole life in one command: python launch/journey.py.

Each stage is an ordinary run; its command is printed, so that it can be repeated alone. Named again
(hydra.run.dir=FOLDER), a journey goes on where it stopped; a finished stage keeps its words.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from loguru import logger
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch.config import spec_from_config
from launch.hydra_errors import explained
from launch.program import refuse, start, start_logging
from launch.text_words import paths_quoted
from llm.core.spec import RefusedError, Spec
from llm.train.journey_spec import JourneySpec

_PROGRAMS = Path(__file__).parent
_WORDS = "words.json"  # of each stage that was started, by the name of its folder


@dataclass(frozen=True)
class Stage:
    """One program of the journey."""

    program: str
    """File in launch/."""
    chosen: tuple[str, ...]
    """Words that a journey may have otherwise."""
    links: tuple[str, ...]
    """Words that say where its parents and its own folder lie."""
    folder: Path

    @property
    def words(self) -> tuple[str, ...]:
        """All of its command line."""
        return (*self.chosen, *self.links)

    @property
    def finished(self) -> bool:
        """What it leaves when all is done is there."""
        from llm.report.json_files import read_json

        if (self.folder / "certificate.json").exists():
            return True
        return read_json(self.folder / "result.json").get("status") == "finished"


def stages(spec: JourneySpec, folder: Path) -> list[Stage]:
    """The programs in their order, each with its words."""
    names = ("tokenizer", "pretrain", "sft", "grpo", "evaluate", "export")
    tokenizer, pretrain, sft, grpo, evaluate, export = (
        folder / f"{number}-{name}" for number, name in enumerate(names, 1)
    )
    runs = {
        pretrain: (spec.pretrain, _word("data.tokenizer.path", tokenizer)),
        sft: (spec.sft, _word("init_from", pretrain)),
        grpo: (spec.grpo, _word("init_from", sft)),
    }
    planned = [("tokenizer.py", spec.tokenizer, [_word("hydra.run.dir", tokenizer)], tokenizer)]
    for place, (words, parent) in runs.items():
        chosen = [f"trainer={place.name[2:]}", *words, *spec.every_run]
        links = [parent, "resume=true", _word("hydra.run.dir", place)]
        planned.append(("main.py", chosen, links, place))
    links = [_word("checkpoint", *runs), _word("hydra.run.dir", evaluate)]
    planned.append(("evaluate.py", spec.evaluate, links, evaluate))
    links = [_word("checkpoint", grpo), _word("out", export)]
    planned.append(("export.py", spec.export, links, export))
    return [Stage(name, tuple(words), tuple(links), to) for name, words, links, to in planned]


def _word(key: str, *paths: Path) -> str:
    """The path as it is, or several in a list, whatever Hydra's grammar would make of them."""
    quoted = [
        text if re.fullmatch(r"[\w./-]+", text) else
        "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        for text in map(str, paths)
    ]  # fmt: skip
    return f"{key}={quoted[0]}" if len(paths) == 1 else f"{key}=[{','.join(quoted)}]"


@hydra.main(version_base="1.3", config_path="../conf", config_name="journey")
def main(cfg: DictConfig) -> None:
    """Run the stages that are not finished yet; then show what descends from what."""
    try:
        start_logging()
        spec = spec_from_config(cfg, JourneySpec)
        folder = Path(HydraConfig.get().runtime.output_dir)
        check_words(stages(spec, folder), folder)
        travel(spec, folder)
    except RefusedError as error:
        refuse(error)


def check_words(planned: Sequence[Stage], folder: Path) -> None:
    """Compose every stage's words before the first stage starts.

    Raises:
        RefusedError: some words are not accepted, or a stage was finished with others.
    """
    from llm.report.json_files import read_json

    known = read_json(folder / _WORDS)
    for stage in planned:
        name = stage.folder.name
        chosen = list(stage.chosen)
        if stage.finished and known.get(name, chosen) != chosen:
            raise RefusedError(
                f"{name}: {shlex.join(chosen)}: it was finished with other words "
                f"({shlex.join(known[name])}); remove {stage.folder} and the folders of the stages "
                "after it, or choose another hydra.run.dir"
            )
        try:
            cfg = compose(Path(stage.program).stem, paths_quoted([*stage.words]))
            spec_from_config(cfg, Spec)
        except RefusedError as error:
            raise RefusedError(f"{name}: {error}") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise RefusedError(f"{name}: {explained(error)}") from None


def travel(spec: JourneySpec, folder: Path) -> None:
    """Run one stage after the other; ends the program with the status of one that fails."""
    from rich.console import Console

    from llm.report.json_files import read_json, write_json
    from llm.report.lineage import lineage, show_lineage

    planned = stages(spec, folder)
    for number, stage in enumerate(planned, 1):
        script = _PROGRAMS / stage.program
        command = shlex.join(["python", f"launch/{stage.program}", *stage.words])
        if stage.finished:
            logger.info("{} of {} is finished: {}", number, len(planned), stage.folder)
            continue
        logger.info("{} of {}: {}", number, len(planned), command)
        known = read_json(folder / _WORDS)
        write_json(folder / _WORDS, {**known, stage.folder.name: list(stage.chosen)})
        status = subprocess.run([sys.executable, str(script), *stage.words], check=False).returncode
        if status or not stage.finished:
            logger.warning(
                "The journey ends here; it goes on with python launch/journey.py "
                "hydra.run.dir={}", folder,
            )  # fmt: skip
            raise SystemExit(status)
    found = lineage(planned[-1].folder)
    write_json(
        folder / "result.json",
        {"status": "finished", "lineage": [stage.to_json() for stage in found]},
    )
    show_lineage(Console(file=sys.stdout, highlight=False), found)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    start(main)
