"""No field that nobody reads: an option must do something.

While a few tiny runs go through every kind of spec, each read of a spec's field is written down. A
read counts if it is made by code that uses the value: not by what every spec does with all of its
fields (checks, comparison, hashing, JSON).
"""

import dataclasses
import importlib
import io
import re
import shutil
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import pytest
from hydra import compose

from launch.chat import main as chat
from launch.config import spec_from_config
from launch.dashboard import make as make_dashboard
from launch.evaluate import evaluate_and_show
from launch.export import main as export
from launch.generate import main as generate_text
from launch.help import CONF
from launch.journey import stages
from launch.plan import plan
from launch.report import report
from launch.schemas import SCHEMAS
from launch.tokenizer import train as train_tokenizer
from llm.core import machine
from llm.core.hardware import HardwareSpec
from llm.core.spec import RefusedError, Spec, knob
from llm.data.source import Skipped
from llm.data.sources import open_source
from llm.data.specs import SourceSpec, TokenizerSpec
from llm.eval.specs import EvaluateSpec, ExpectedTokenizerSpec, TextSpec
from llm.models.specs import LoRASpec, RopeScalingSpec
from llm.plan.check import check_fits
from llm.plan.specs import PlanSpec
from llm.report.specs import DashboardSpec, ReportSpec, TrackerSpec
from llm.train.experiment import CheckpointSpec, EvalSpec, ExperimentSpec, SamplesSpec
from llm.train.grpo.reference import mover_of
from llm.train.grpo.spec import GRPOSpec
from llm.train.journey_spec import JourneySpec
from llm.train.run import run
from llm.train.run_folder import check_run_folder
from llm.train.tokenizer_spec import TokenizerTrainingSpec

NESTED = [CheckpointSpec, EvalSpec, SamplesSpec, TrackerSpec, TokenizerSpec, SourceSpec]
NESTED += [RopeScalingSpec, LoRASpec, TextSpec, ExpectedTokenizerSpec]
SPECS = {*SCHEMAS.values(), *NESTED}

Reads = set[tuple[type[Spec], str]]


@contextmanager
def watched() -> Iterator[Reads]:
    """The fields that are read while this is open."""
    reads: Reads = set()
    original = Spec.__getattribute__

    def watching(self: Spec, name: str) -> object:
        if name in type(self).__dataclass_fields__ and _uses_it(sys._getframe(1)):
            reads.add((type(self), name))
        return original(self, name)

    Spec.__getattribute__ = watching  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        del Spec.__getattribute__


def _uses_it(frame) -> bool:
    while frame.f_code.co_name.startswith("<"):  # a comprehension acts for what surrounds it
        if frame.f_code.co_filename == "<string>":  # __eq__ and __hash__ of a dataclass
            return False
        frame = frame.f_back
    file = frame.f_code.co_filename
    made_by_dataclasses = file == "<string>" or file.endswith("dataclasses.py")
    of_every_spec = file.endswith("core/spec.py") or "jaxtyping" in file or "beartype" in file
    return not (made_by_dataclasses or of_every_spec or frame.f_code.co_name == "check")


def read_by_conf() -> Reads:
    """The fields that conf/ itself refers to, such as `${trainer.name}` in the run's name."""
    text = "".join(file.read_text() for file in CONF.rglob("*.yaml"))
    references = re.findall(r"\$\{(\w+)\.(\w+)\}", text)
    groups = typing.get_type_hints(ExperimentSpec)
    return {(s, key) for group, key in references for s in SPECS if issubclass(s, groups[group])}


def unread(specs: set[type[Spec]], reads: Reads) -> list[str]:
    return sorted(
        f"{spec.__name__}.{field.name}"
        for spec in specs
        for field in dataclasses.fields(spec)
        if not any((one, field.name) in reads for one in spec.__mro__)  # as a run and a plan share
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lamp(Spec):
    watts: int = knob(40, "power", gt=0)
    colour: str = knob("white", "nobody asks")

    def check(self) -> None:
        assert self.colour


def test_a_field_that_nobody_reads_is_found() -> None:
    with watched() as reads:
        lamp = Lamp()
        assert lamp == lamp.replace(watts=40)
        assert hash(lamp)
        assert lamp.to_json()
        assert unread({Lamp}, reads) == ["Lamp.colour", "Lamp.watts"]
        assert [lamp.watts for _ in range(2)] == [40, 40]
        assert unread({Lamp}, reads) == ["Lamp.colour"]
    assert Lamp().colour
    assert unread({Lamp}, reads) == ["Lamp.colour"]


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces
def test_every_field_of_every_spec_is_read(
    composed_generation, experiment, tiny_words, tmp_path: Path, trained_run: Path, monkeypatch
) -> None:
    importlib.import_module("wandb_workspaces.workspaces")  # needs the real W&B
    importlib.import_module("wandb_workspaces.reports.v2")
    # Other libraries look whether it is installed: it has a spec, as modules have.
    wandb = MagicMock(__spec__=ModuleSpec("wandb", None))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(f'{{"body": "{i} def return self = 1"}}\n' for i in range(40)))
    runs = [
        [*tiny_words, "model.n_heads=2", "hardware=h100", "trainer/optimizer=adamw",
         "trainer/schedule=warmup_cosine", "samples.every=2", "samples.max_new_tokens=2",
         "tracker.mode=offline"],
        [*tiny_words, "data=padded", "data.source=jsonl", f"data.path={lines}",
         "data.text_field=body", "hardware=cpu", "model=llama_tiny", "model.n_heads=2",
         "model.n_kv_heads=1", "model.d_mlp=16", "model.rope_scaling.factor=2",
         "model.lora.rank=2", "trainer.freeze=['*.lora_a']",
         "trainer/optimizer=muon", "trainer/schedule=warmup_stable_decay"],
        ["trainer=sft", *tiny_words, "model.n_heads=2", "hardware=cpu", "data.source=task",
         "data.path=null", "data.max_documents=200", "samples.every=2", "samples.max_new_tokens=2"],
        ["trainer=grpo", *tiny_words, "model.n_heads=2", "hardware=cpu", "data.source=task",
         "data.path=addition", "data.max_documents=60", f"init_from={trained_run}",
         "model.max_seq_len=64", "data.seq_len=64", "trainer.max_new_tokens=2",
         "trainer.group_size=2", "trainer.kl_weight=0.1", "trainer.reference=ema",
         "trainer.eval_prompts=2", "trainer.mini_batches=2"],
    ]  # fmt: skip
    with watched() as reads:
        for number, words in enumerate(runs):
            spec = experiment(*words)
            folder = tmp_path / str(number)
            check_fits(spec, machine.claim(spec.hardware), folder)
            run(spec, folder)
            with pytest.raises(RefusedError, match="holds a run already"):
                check_run_folder(spec, folder)
        with pytest.raises(RefusedError, match="rewards=nothing: "):
            experiment("trainer=grpo", "trainer.rewards=[nothing]").trainer.check_available()
        (tmp_path / "plan").mkdir()
        words = [*tiny_words, "model.n_heads=2", "hardware=cpu", "hardware.memory_gib=1"]
        plan(spec_from_config(compose("plan", words), PlanSpec), tmp_path / "plan")
        words = ["project=p", "dry_run=true"]
        make_dashboard(spec_from_config(compose("dashboard", words), DashboardSpec), tmp_path)
        mover_of(GRPOSpec(reference="periodic", kl_weight=0.1))
        for optimizer, schedule in [("optax", "linear"), ("adamw", "constant")]:
            words = [f"trainer/optimizer={optimizer}", f"trainer/schedule={schedule}"]
            trainer = experiment(*words).trainer
            trainer.optimizer.build({"lr": trainer.schedule.build(trainer.optimizer.lr, 9)})
        generate_text(composed_generation(f"checkpoint={trained_run}", "max_new_tokens=2"))
        report(ReportSpec(folder=str(trained_run), follow=True))
        talk_and_export(trained_run, tmp_path, monkeypatch)
        words = [word for word in tiny_words if word.startswith(("data.source", "data.path"))]
        cfg = compose("tokenizer", [*words, "data.eval_fraction=0.1", "vocab_size=300"])
        train_tokenizer(spec_from_config(cfg, TokenizerTrainingSpec), tmp_path / "tokenizer", [])
        assert len(stages(spec_from_config(compose("journey"), JourneySpec), tmp_path)) == 6
        evaluate_it(trained_run, lines, tmp_path, monkeypatch)
        for model in ("gpt2", "llama"):
            assert experiment("init_from=pretrained", f"model={model}").first_weights
        read_a_dataset(tmp_path, monkeypatch)
        look_for_a_gpu(monkeypatch)
    reads |= read_by_conf()
    assert unread(SPECS, reads) == []


def talk_and_export(trained_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other programs, on a model that is there."""
    template = folder / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    words = [f"checkpoint={trained_run}", "hardware.compilation_cache=null"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("def\n"))
    chat(compose("chat", [*words, f"template={template}", "max_new_tokens=2"]))
    monkeypatch.setattr("llm.hub.hf_hub.push_hf", lambda *_, **__: "there")
    export(compose("export", [*words, f"out={folder / 'exported'}", "push=org/name"]))


def evaluate_it(
    trained_run: Path, lines: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text and a task; what the harness would be told is looked at."""
    monkeypatch.setattr("llm.eval.evaluation.run_harness", lambda *_, **__: {})
    monkeypatch.setitem(sys.modules, "lm_eval", MagicMock(__spec__=ModuleSpec("lm_eval", None)))
    words = [
        f"checkpoint={trained_run}", "data.source=jsonl", f"data.path={lines}",
        "data.text_field=body", f"data.cache_dir={folder / 'cache'}", "data.eval_fraction=0.2",
        "limit=1", "suite=core", "tasks=[parity]", "shots=0", "max_new_tokens=2", "samples=1",
        "lm_eval=[arc_easy]", "context=64", "tracker.mode=disabled",
        "hardware.compilation_cache=null",
    ]  # fmt: skip
    spec = spec_from_config(compose("evaluate", words), EvaluateSpec)
    evaluate_and_show(spec, folder / "evaluation")
    shutil.rmtree(trained_run / "evaluations")  # the run is shared among tests


def read_a_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of the Hugging Face library, its way to the network cut short."""
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    for spec in (SourceSpec, TextSpec):
        source = open_source(spec(source="hf", path="org/name"), folder)
        assert source.size is None
        assert [document.text for document in source.documents(Skipped())] == ["a", "b"]


def look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU, but not the one that is asked for."""
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA RTX A6000")
    monkeypatch.setattr(machine, "gpu_expected", lambda: True)
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    with pytest.raises(RefusedError, match="not a H100"):
        machine.claim(HardwareSpec(device="gpu", device_kind="H100", require=True))
