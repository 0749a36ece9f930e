import sys

import pytest
from loguru import logger

from llm.report.run_report import RunReport
from llm.report.specs import TrackerSpec


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch, tmp_path):
    """No test depends on, or touches, the W&B login of the machine it runs on."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))


@pytest.fixture
def log():
    """What loguru said, as a list of lines."""
    lines = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.fixture(autouse=True)
def loguru_as_it_was():
    yield
    logger.remove()
    logger.add(sys.stderr)


@pytest.fixture
def make_report(tmp_path):
    """A RunReport in its own folder, W&B off unless asked for."""

    def make(folder="run", mode="disabled", **changes):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        settings = {"config": {"model": {"n_layers": 2}}, "lineage": {"parent": None}}
        settings |= {"title": "pretrain gpt", "total_steps": 20}
        settings |= {"tracker": TrackerSpec(mode=mode)}
        return RunReport(path, **(settings | changes))

    return make
