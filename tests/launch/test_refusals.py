"""Whatever cannot work is refused in one clear line, before anything is created."""

from pathlib import Path

import pytest
from hydra.errors import HydraException

from launch.callbacks import RefuseEarly
from launch.hydra_errors import explained
from launch.resume import replay_words
from llm.core.spec import RefusedError
from llm.train.run_folder import check_run_folder

# Words, and the whole line that follows "Refused: ".
COMPOSITION = {
    "trainer.lrr=1": "trainer.lrr: no such key. PretrainSpec has name, steps, optimizer,",
    "trainer.lr=abc": "trainer.lr: no such key. PretrainSpec has name, steps, optimizer,",
    "model.rope_theta=1": "model.rope_theta: no such key. GPTSpec has name, vocab_size,",
    "foo=bar": "foo: no such key. ExperimentSpec has name, seed,",
    "trainer.optimizer.lr=abc": (
        "trainer.optimizer.lr=abc: Value 'abc' of type 'str' could not be converted to Float"
    ),
    "trainer.steps=1e3": (
        "trainer.steps=1e3: Value '1000.0' of type 'float' could not be converted to Integer"
    ),
    "seed=": "seed=: Value '' of type 'str' could not be converted to Integer",
    "model.n_layers=null": "model.n_layers=null: field 'model.n_layers' is not Optional",
    "hardware.require=maybe": (
        "hardware.require=maybe: Value 'maybe' is not a valid bool (type str)"
    ),
    "samples.prompts=def": "samples.prompts=def: expected a list, as in samples.prompts=[def]",
    "model=lama": "model=lama: no such option. model has gpt, gpt2, llama, llama3_1b,",
    "model=": "model=: no such option. model has gpt, gpt2, llama, llama3_1b,",
    "trainer/schedule=foo": "trainer/schedule=foo: no such option. trainer/schedule has constant,",
    "seed": "seed: expected key=value (missing EQUAL at '<EOF>')",
    "~data.seq_len": "~data.seq_len: PackedSpec (DictConfig) does not support deletion",
}
OURS = {
    "+x=1": "x: no such key. ExperimentSpec has name, seed,",
    "+model.x=1": "model.x: no such key. GPTSpec has name, vocab_size,",
    "~model": "model: a value is needed and none was given",
    "~data": "data: a value is needed and none was given",
    "trainer.steps=???": "trainer.steps: Missing mandatory value: steps",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found",
    "model._target_=os.system": "model._target_=os.system: not a spec of this package",
    "name=": "name=: becomes part of a folder's name; not empty, no /",
    "name=a/b": "name=a/b: becomes part of a folder's name; not empty, no /",
    "seed=-1": "seed=-1: expected a number at least 0",
    f"seed={2**64}": f"seed={2**64}: expected a number less than",
    "trainer.optimizer.lr=nan": "trainer.optimizer.lr=nan: expected a finite number",
    "trainer.optimizer.lr=inf": "trainer.optimizer.lr=inf: expected a finite number",
    "trainer.optimizer.lr=0": "trainer.optimizer.lr=0.0: expected a number greater than 0",
    "trainer.steps=0": "trainer.steps=0: expected a number greater than 0",
    "trainer.steps=600 trainer.schedule.warmup_steps=600": (
        "trainer.schedule.warmup_steps=600: must be less than steps=600"
    ),
    "hardware.compute_dtype=fp8": (
        "hardware.compute_dtype=fp8: expected one of auto, float32, bfloat16"
    ),
    "hardware.attention=flash hardware=cpu": (
        "hardware.attention=flash: a kernel for GPUs, and device=cpu; try auto"
    ),
    "hardware.xla_flags=[foo]": "hardware.xla_flags=foo: expected flags that begin with --xla_",
    "model=llama_tiny model.n_kv_heads=5 model.n_heads=8": (
        "model.n_kv_heads=5: must divide n_heads=8"
    ),
    "model.d_model=384 model.n_heads=5": "model.n_heads=5: must divide d_model=384",
    "data.seq_len=4096 model.max_seq_len=1024": (
        "data.seq_len=4096: longer than model.max_seq_len=1024"
    ),
    "data.batch_size=16 hardware.micro_batch=3": (
        "data.batch_size=16: must be a multiple of 3, 3 rows (hardware.micro_batch) x 1 devices"
    ),
    "data.batch_size=6 hardware.fsdp=4": (
        "data.batch_size=6: must be a multiple of 4, 1 rows (hardware.micro_batch) x 4 devices"
    ),
    "model.vocab_size=300 data.tokenizer.vocab_size=4096": (
        "model.vocab_size=300: smaller than data.tokenizer.vocab_size=4096;"
    ),
    "samples.every=1 samples.max_new_tokens=1024 model.max_seq_len=1024": (
        "samples.max_new_tokens=1024: must be less than model.max_seq_len=1024"
    ),
    "model.lora.rank=4 model.lora.targets=[query]": (
        "model.lora.targets=[query]: query matches no matrix; there are qkv, out, up, down in"
    ),
    "model.lora.dropout=0.1": "model.lora.dropout=0.1: does nothing with rank=0; set rank too",
    "init_from=pretrained": "init_from=pretrained: model=gpt has no published weights; name a",
    "data.source=text": "data.path: source=text needs one (a file, folder or glob)",
    "data.path=abc": "data.path=abc: source=stdlib reads the running Python's own library",
    "data.mixture=[{source:text}]": "data.mixture[0].path: source=text needs one",
    "data.tokenizer.vocab_size=100": "data.tokenizer.vocab_size=100: expected a number greater",
    "data=padded data.seq_len=256 data.buckets=[512]": (
        "data.buckets=[512]: longer than seq_len=256"
    ),
}
# Known before anything is created too, but not from the specs alone.
HERE = {
    "data.source=task data.path=sums": "data.path=sums: tasks=sums: no such kind of task",
    "init_from=nonsense": "init_from=nonsense: no such folder; expected a run folder, a checkpoint",
    "init_from=last:grpo": "init_from=last:grpo: no run of trainer grpo with a checkpoint in",
    "init_from=gguf:nowhere.gguf": "init_from=gguf:nowhere.gguf: no such file or folder",
    "init_from=hf:": "init_from=hf:: a name is missing; expected a run folder",
    "init_from=[]": "init_from=[]: expected at least one source",
    "resume=nonsense": "resume=nonsense: a run's folder is named on the command line",
    "trainer.freeze=[embeding]": "trainer.freeze=[embeding]: embeding matches no parameter; the",
    "model.lora.rank=4 trainer.freeze=[embedding]": (
        "trainer.freeze=[embedding]: embedding matches only what is frozen anyway, beside"
    ),
    "hardware=h100 hardware.require=true": "hardware=h100 with hardware.require=true: no GPU",
    "trainer/optimizer=optax trainer.optimizer.optimizer=lioon": (
        "trainer.optimizer.optimizer=lioon: not an optimizer of optax"
    ),
    "trainer/optimizer=optax +trainer.optimizer.options.b3=1": (
        "trainer.optimizer.options.b3: optax.lion has no such option. It has b1, b2,"
    ),
}


@pytest.mark.parametrize(("words", "line"), COMPOSITION.items(), ids=COMPOSITION)
def test_hydras_errors_in_one_line(composed, words: str, line: str) -> None:
    with pytest.raises(HydraException) as error:
        composed(*words.split())
    found = explained(error.value)
    assert found.startswith(line)
    assert "\n" not in found


@pytest.mark.parametrize(("words", "line"), OURS.items(), ids=OURS)
def test_our_own_checks(experiment, words: str, line: str) -> None:
    with pytest.raises(RefusedError) as error:
        experiment(*words.split())
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("words", "line"), HERE.items(), ids=HERE)
def test_what_depends_on_this_machine(
    composed, words: str, line: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """By the callback that Hydra calls before it makes the run's folder."""
    monkeypatch.chdir(tmp_path)
    config = composed(*words.split(), "hydra.run.dir=run", hydra=True)
    with pytest.raises(SystemExit) as end:
        RefuseEarly().on_run_start(config)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"Refused: {line}")
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_word_ends_with_1(command, tmp_path: Path) -> None:
    done = command("trainer.lrr=1")
    assert done.returncode == 1
    assert done.stderr.startswith("Refused: trainer.lrr: no such key.")
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_a_value_of_ours_ends_with_2(command, tmp_path: Path) -> None:
    done = command("trainer.optimizer.lr=nan")
    assert done.returncode == 2
    assert done.stderr == "Refused: trainer.optimizer.lr=nan: expected a finite number\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_go_on_says_why_in_one_line(command, tiny_words) -> None:
    words = ["trainer/optimizer=optax", "trainer.optimizer.optimizer=sgd", "trainer.grad_clip=null"]
    done = command(*tiny_words, *words, "trainer.optimizer.lr=1e30", "tracker.mode=disabled")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Failed: train/loss is ")


@pytest.mark.parametrize("words", ["trainer=null", "--help model=lama"])
def test_no_word_ends_in_a_stack_trace(command, tmp_path: Path, words: str) -> None:
    done = command(*words.split())
    assert done.returncode == 1
    assert done.stderr.startswith("Refused: ")
    assert words.rsplit(maxsplit=1)[-1] in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_whole_story_for_those_who_ask(command) -> None:
    done = command("trainer.lrr=1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_folder_that_holds_a_run_is_not_written_over(experiment, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RefusedError, match="holds a run already; continue it with resume="):
        check_run_folder(experiment(), tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("resume=nonsense", "resume=nonsense: not a run folder"),
        ("resume=last", "resume=last: there is no run in outputs/"),
    ],
)
def test_nothing_to_resume(words: str, line: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match=line):
        replay_words(words.split())


def test_generation_refuses_alike(command) -> None:
    for words, status, line in [
        ("checkpoint=nonsense", 2, "Refused: checkpoint=nonsense: no such folder"),
        ("temperature=-1", 2, "Refused: temperature=-1.0: expected a number at least 0"),
        ("temperatur=1", 1, "Refused: temperatur: no such key. GenerateSpec has max_new_tokens,"),
    ]:
        done = command(words, script="generate.py")
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert done.stderr.startswith(line)
