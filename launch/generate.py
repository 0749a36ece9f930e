"""Sample text: python launch/generate.py checkpoint=last prompt="def main("."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from loguru import logger
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from launch.text_words import with_text
from llm.core.new_file import check_new_file
from llm.core.spec import RefusedError
from llm.generate.specs import GenerateSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="generate")
def main(cfg: DictConfig) -> None:
    """Write prompts and answers to standard output, or to a file."""
    try:
        start_logging()
        generate(spec_from_config(cfg, GenerateSpec))
    except RefusedError as error:
        refuse(error)


def generate(spec: GenerateSpec) -> None:
    """Load the model and continue the prompts."""
    from llm.generate.prompts import read_prompts, write_answers

    prompts = [spec.prompt or ""]
    if spec.prompts_file is not None:
        prompts = read_prompts(Path(spec.prompts_file).expanduser())
    out = None if spec.out is None else Path(spec.out).expanduser()
    if out is not None:
        check_new_file(out, "out")
    from llm.core.machine import claim
    from llm.generate.language_model import load

    machine = claim(spec.hardware)
    if machine.note:
        logger.warning(machine.note)
    lm = load(
        spec.checkpoint,
        dtype=spec.dtype,
        compute_dtype=machine.spec.compute_dtype,
        cache_dtype=machine.spec.cache_dtype,
    )
    answers = lm.generate(
        prompts,
        n=spec.n,
        stop=spec.stop or True,
        seed=spec.seed,
        batch_size=spec.batch_size,
        sampling=spec.sampling(),
    )
    if out is not None:
        write_answers(out, prompts, answers)
        logger.info("{} answers to {} prompts in {}", len(prompts) * spec.n, len(prompts), out)
        return
    for prompt, texts in zip(prompts, answers, strict=True):
        for text in texts:
            sys.stdout.write(f"{prompt}{text}\n\n")


if __name__ == "__main__":
    start(with_text("prompt", main))
