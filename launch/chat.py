"""Talk with a model: python launch/chat.py checkpoint=last."""

from __future__ import annotations

import io
import sys

import hydra
from loguru import logger
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from launch.text_words import with_text
from llm.core.spec import RefusedError
from llm.generate.chat_spec import ChatSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="chat")
def main(cfg: DictConfig) -> None:
    """Read questions from standard input, write answers to standard output."""
    try:
        start_logging()
        talk(spec_from_config(cfg, ChatSpec))
    except RefusedError as error:
        refuse(error)
    except KeyboardInterrupt:  # while it loads; in the chat, Ctrl-C ends an answer
        sys.stderr.write("Stopped.\n")


def talk(spec: ChatSpec) -> None:
    """Load the model, then talk."""
    from llm.core.machine import claim
    from llm.data.chat_template import read_template
    from llm.generate.chat import converse
    from llm.generate.language_model import load
    from llm.generate.terminal_chat import TerminalChat
    from llm.report.terminal import console

    template = None if spec.template is None else read_template(spec.template)
    machine = claim(spec.hardware)
    if machine.note:
        logger.warning(machine.note)
    conversation = converse(
        load(
            spec.checkpoint,
            compute_dtype=machine.spec.compute_dtype,
            cache_dtype=machine.spec.cache_dtype,
        ),
        sampling=spec.sampling(),
        system=spec.system,
        template=template,
        seed=spec.seed,
    )
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    TerminalChat(conversation, console).run()


if __name__ == "__main__":
    start(with_text("system", main))
