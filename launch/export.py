"""A checkpoint as a Hugging Face folder: python launch/export.py checkpoint=last out=DIR."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import hydra
from loguru import logger
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from llm.core.spec import RefusedError
from llm.hub.specs import ExportSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Write the folder, and upload it if asked to."""
    # As an exception, so that a half-written folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        start_logging()
        spec = spec_from_config(cfg, ExportSpec)
        from llm.core.machine import claim
        from llm.generate.language_model import load
        from llm.hub.export import check_out, export
        from llm.hub.hf_hub import push_hf
        from llm.hub.peft_folder import export_adapter
        from llm.hub.sources import open_source

        out = Path(spec.out).expanduser()
        check_out(out)
        machine = claim(spec.hardware)
        if machine.note:
            logger.warning(machine.note)
        if spec.adapter:
            source = open_source(spec.checkpoint)
            export_adapter(source, out, dtype=spec.dtype, repo=spec.push)
        else:
            model = load(spec.checkpoint)
            export(
                model.pretrained,
                model.params,
                out,
                dtype=spec.dtype,
                max_shard_bytes=int(spec.max_shard_gib * 2**30),
                gguf=spec.gguf,
                repo=spec.push,
            )
        if spec.push is not None:
            logger.info("Uploaded: {}", push_hf(out, spec.push, private=spec.private))
    except RefusedError as error:
        refuse(error)
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    start(main)
