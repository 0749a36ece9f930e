"""What would a run need? python launch/plan.py [the words of the run] [exact=true]."""

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
from llm.plan.specs import PlanSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="plan")
def main(cfg: DictConfig) -> None:
    """Print the plan; result.json and plan.png in its folder hold it too."""
    hydra_config = HydraConfig.get()
    try:
        start_logging()
        plan(spec_from_config(cfg, PlanSpec), Path(hydra_config.runtime.output_dir))
    except RefusedError as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the others go on; `start` reports this one
            raise
        refuse(error)


def plan(spec: PlanSpec, folder: Path) -> None:
    """Estimate, compile if that is wanted, show, write."""
    from rich.console import Console

    from llm.plan.estimate import estimate
    from llm.plan.exact import compiled
    from llm.plan.remedies import remedies
    from llm.plan.show import draw, show
    from llm.plan.target import target_of
    from llm.report.json_files import write_json
    from llm.train.origin import Origin

    found = estimate(spec, target_of(spec.hardware), Origin(spec, folder).vocabulary())
    ways = [] if found.fits else remedies(found)
    exact = list(compiled(found)) if spec.exact else []
    show(Console(file=sys.stdout, highlight=False), found, ways, exact)
    result = {
        "status": "finished",
        **found.to_json(),
        "exact": [one.to_json() for one in exact],
        "remedies": [{"words": w.words, "same": w.same, **w.estimate.to_json()} for w in ways],
    }
    write_json(folder / "result.json", result)
    draw(found, folder / "plan.png")
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    start(main)
