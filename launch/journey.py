"""A model's whole life in one command: python launch/journey.py.

Each stage is an ordinary run; its command is printed, so that it can be repeated alone. Named again
(hydra.run.dir=FOLDER), a journey goes on where it stopped.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from loguru import logger
from omegaconf import DictConfig

from launch.config import refuse, spec_from_config, start, start_logging
from llm.core.spec import RefusedError
from llm.train.journey_spec import JourneySpec

_PROGRAMS = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """One program of the journey."""

    program: str
    """File in launch/."""
    words: tuple[str, ...]
    folder: Path

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
        pretrain: ("trainer=pretrain", *spec.pretrain, _word("data.tokenizer.path", tokenizer)),
        sft: ("trainer=sft", *spec.sft, _word("init_from", pretrain)),
        grpo: ("trainer=grpo", *spec.grpo, _word("init_from", sft)),
    }
    again = ("resume=true",)
    return [
        Stage("tokenizer.py", (*spec.tokenizer, _word("hydra.run.dir", tokenizer)), tokenizer),
        *(
            Stage(
                "main.py", (*words, *spec.every_run, *again, _word("hydra.run.dir", place)), place
            )
            for place, words in runs.items()
        ),
        Stage(
            "evaluate.py",
            (*spec.evaluate, _word("checkpoint", *runs), _word("hydra.run.dir", evaluate)),
            evaluate,
        ),
        Stage("export.py", (*spec.export, _word("checkpoint", grpo), _word("out", export)), export),
    ]


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
        travel(spec, Path(HydraConfig.get().runtime.output_dir))
    except RefusedError as error:
        refuse(error)


def travel(spec: JourneySpec, folder: Path) -> None:
    """Run one stage after the other; ends the program with the status of one that fails."""
    from rich.console import Console

    from llm.report.json_files import write_json
    from llm.report.lineage import lineage, show_lineage

    planned = stages(spec, folder)
    for number, stage in enumerate(planned, 1):
        script = _PROGRAMS / stage.program
        command = shlex.join(["python", f"launch/{stage.program}", *stage.words])
        if stage.finished:
            logger.info("{} of {} is finished: {}", number, len(planned), stage.folder)
            continue
        logger.info("{} of {}: {}", number, len(planned), command)
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
