"""Sample text: python launch/generate.py checkpoint=last prompt="def main("."""

from __future__ import annotations

import sys

import hydra
from loguru import logger
from omegaconf import DictConfig

from launch.config import refuse, spec_from_config, start, start_logging
from llm.core.spec import RefusedError
from llm.generate.specs import GenerateSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="generate")
def main(cfg: DictConfig) -> None:
    """Write prompt and continuations to standard output."""
    try:
        start_logging()
        spec = spec_from_config(cfg, GenerateSpec)
        from llm.core.machine import claim
        from llm.generate.language_model import load

        machine = claim(spec.hardware)
        if machine.note:
            logger.warning(machine.note)
        texts = load(spec.checkpoint).generate(
            [spec.prompt] * spec.n,
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            seed=spec.seed,
        )
    except RefusedError as error:
        refuse(error)
    for text in texts:
        sys.stdout.write(f"{spec.prompt}{text}\n\n")


if __name__ == "__main__":
    start(main)
