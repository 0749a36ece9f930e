"""Talk with a model: python launch/chat.py checkpoint=last."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import hydra
from loguru import logger
from omegaconf import DictConfig

from launch.config import refuse, spec_from_config, start, start_logging
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
    template = None if spec.template is None else read_template(Path(spec.template))
    from llm.core.machine import claim
    from llm.generate.chat import converse
    from llm.generate.language_model import load
    from llm.generate.terminal_chat import TerminalChat
    from llm.report.terminal import console

    machine = claim(spec.hardware)
    if machine.note:
        logger.warning(machine.note)
    conversation = converse(
        load(spec.checkpoint, compute_dtype=machine.spec.compute_dtype),
        sampling=spec.sampling(),
        system=spec.system,
        template=template,
        seed=spec.seed,
    )
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    TerminalChat(conversation, console).run()


def read_template(path: Path) -> str:
    """A file's text.

    Raises:
        RefusedError: there is none.
    """
    try:
        return path.expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"template={path}: cannot be read: {error}") from None


if __name__ == "__main__":
    start(main)
