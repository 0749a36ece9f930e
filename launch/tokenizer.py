"""Train a tokenizer: python launch/tokenizer.py data.source=text data.path=a.txt vocab_size=512."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from llm.core.spec import RefusedError
from llm.train.tokenizer_spec import TokenizerTrainingSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="tokenizer")
def main(cfg: DictConfig) -> None:
    """Print the quality table; the run's folder holds the tokenizer and all that was measured."""
    hydra_config = HydraConfig.get()
    try:
        start_logging()
        spec = spec_from_config(cfg, TokenizerTrainingSpec)
        train(spec, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
    except RefusedError as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the others go on; `start` reports this one
            raise
        refuse(error)


def train(spec: TokenizerTrainingSpec, folder: Path, overrides: list[str]) -> None:
    """Train, show, and say how to go on."""
    from loguru import logger
    from rich.console import Console

    from llm.report.tokenizer_report import show
    from llm.train.tokenizer_training import train_tokenizer

    measured = train_tokenizer(spec, folder, overrides=overrides)
    show(Console(file=sys.stdout, highlight=False), measured)
    logger.info("Use it: python launch/main.py data.tokenizer.path={}", folder)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    start(main)
