"""Plans against figures worked out by hand, and what follows from them."""

import time

import pytest
from loguru import logger

from llm.core.devices import device_called
from llm.core.hardware import HardwareSpec
from llm.core.machine import claim
from llm.core.spec import RefusedError
from llm.data.bpe import train_bpe
from llm.data.specs import PackedSpec, TokenizerSpec
from llm.data.tokenizer import Tokenizer
from llm.models.specs import GPTSpec, LlamaSpec, LoRASpec
from llm.plan.check import check_fits
from llm.plan.estimate import Estimate, estimate
from llm.plan.remedies import remedies
from llm.plan.target import target_by_name, target_here
from llm.train.experiment import ExperimentSpec, SamplesSpec
from llm.train.grpo.spec import GRPOSpec
from llm.train.origin import Origin
from llm.train.supervised_specs import PretrainSpec

GPT2 = GPTSpec(name="gpt2", vocab_size=50257, n_layers=12, d_model=768, n_heads=12)
LLAMA_8B = LlamaSpec(
    name="llama3_8b", vocab_size=128256, max_seq_len=8192, n_layers=32, d_model=4096, n_heads=32,
    n_kv_heads=8, d_mlp=14336, tied_head=False,
)  # fmt: skip
H100 = HardwareSpec(name="h100", device="gpu", device_kind="H100 NVL", compute_dtype="bfloat16")
GIB = 2**30


def plan(model=GPT2, hardware=H100, trainer=None, rows=8, T=1024, **changes) -> Estimate:
    experiment = ExperimentSpec(
        name="x", model=model, data=PackedSpec(seq_len=T, batch_size=rows),
        trainer=trainer or PretrainSpec(steps=1000), hardware=hardware, **changes,
    )  # fmt: skip
    return estimate(experiment, target_by_name(hardware))


def test_gpt2_by_hand() -> None:
    found = plan()
    n = 124_439_808  # of the published model
    assert found.parameters == found.trained == n
    # Each weight twice forward, four times backward; scores and values of 12 layers besides.
    assert found.model_flops == 8192 * (6 * (n - 1024 * 768 - biases()) + 12 * 12 * 768 * 1024)
    parts = found.stages[0].need.parts
    assert parts["weights"] == 4 * n
    assert parts["optimizer"] == 8 * n + 2 * 4  # two counters
    assert parts["weights to compute with"] == 2 * (n - biases())
    # What goes into the products of a block (four times the width of the stream), what comes out
    # (3 for qkv, 1, 4 of the MLP, 1), all in bf16; what the MLP's second product reads (4).
    per_token = 12 * ((3 + 1 + 4 + 1 + 1 + 1 + 1 + 4) * 768 * 2 + 12 * 4)
    assert parts["activations"] == 8192 * per_token
    assert parts["logits"] == 4096 * 50257 * (4 + 2)


def biases() -> int:
    """Biases and norms of GPT-2: not in matrix products."""
    return 12 * (3 + 1 + 4 + 1 + 4) * 768 + 2 * 768


def test_adapters_leave_the_base_without_optimizer_and_gradient() -> None:
    found = plan(LLAMA_8B.replace(lora=LoRASpec(rank=16)), rows=1)
    parts = found.stages[0].need.parts
    assert found.parameters - found.trained == 8_030_261_248
    assert parts["weights"] == pytest.approx(2 * 8_030_261_248 + 4 * found.trained, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(8 * found.trained, rel=1e-3)
    assert found.fits


def test_devices_share_the_state() -> None:
    one, eight = plan(LLAMA_8B), plan(LLAMA_8B, H100.replace(fsdp=8))
    assert one.target.spec.attention == "flash" and eight.target.spec.attention == "cudnn"
    for part in ("weights", "optimizer"):
        assert eight.stages[0].need.parts[part] == pytest.approx(
            one.stages[0].need.parts[part] / 8, rel=1e-3
        )
    assert eight.fits and not one.fits
    assert eight.device_hours == pytest.approx(one.device_hours, rel=0.01)  # the work is the same


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_what_is_computed_again_is_not_kept(remat: str) -> None:
    found, plain = plan(hardware=H100.replace(remat=remat)), plan()
    kept, all_of_it = (x.stages[0].need.parts["activations"] for x in (found, plain))
    assert (kept < all_of_it) == (remat != "none")
    assert found.model_flops == plain.model_flops  # what is useful stays the same
    assert (found.step_seconds > plain.step_seconds) == (remat != "none")
    assert (found.mfu < plain.mfu) == (remat != "none")


def test_the_stages_of_grpo() -> None:
    trainer = GRPOSpec(max_new_tokens=64, kl_weight=0.1)
    found = plan(trainer=trainer, T=256)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["train step", "prefill", "decode", "score"]
    # 64 rows of 256 places, keys and values of 12 layers in bf16.
    assert stages["decode"].need.parts["KV cache"] == 64 * 256 * 12 * 2 * 768 * 2
    assert stages["train step"].need.parts["reference"] == 4 * 124_439_808
    assert found.tokens_per_step == 8 * 8 * 64  # answers alone fill two rows
    twice = plan(trainer=trainer.replace(epochs=2), T=256)
    assert {s.name: s.per_step for s in twice.stages} == {
        "train step": 1, "prefill": 0.5, "decode": 0.5, "score": 1,
    }  # fmt: skip
    renamed = plan(trainer=trainer.replace(name="mine"), T=256)
    assert renamed.stages[0].need == found.stages[0].need
    split = plan(hardware=H100.replace(fsdp=4), trainer=trainer, T=256).stages[2].need.parts
    assert 4 * split["KV cache"] == stages["decode"].need.parts["KV cache"]
    longer = plan(trainer=trainer.replace(max_new_tokens=300), T=512)
    assert "larger caches" in {stage.name for stage in longer.stages}


def test_a_profile_may_say_what_its_device_can_do() -> None:
    unknown = H100.replace(name="tpu", device_kind="H1000X")
    assert device_called("NVIDIA RTX 9090") is None
    with pytest.raises(RefusedError, match="device_kind=RTX 9090: known are A6000"):
        target_by_name(unknown.replace(device_kind="RTX 9090"))
    given = unknown.replace(
        device_kind="RTX 9090", peak_tflops=100.0, bandwidth=1000.0, memory_gib=32.0
    )
    target = target_by_name(given)
    assert (target.flops, target.bandwidth) == (1e14, 1e12)
    assert target.memory == int(0.92 * 32 * GIB)


def test_remedies_fit_and_are_words_of_the_command_line() -> None:
    a6000 = H100.replace(device_kind="A6000")
    assert [way.same for way in remedies(plan(LLAMA_8B, a6000, rows=8, T=4096))] == [True]
    assert remedies(plan(LLAMA_8B, a6000, rows=8, T=4096), devices=1) == []
    # Adapters are for weights that know something.
    found = plan(LLAMA_8B, a6000, rows=8, T=4096, init_from="hf:some/llama")
    ways = remedies(found)
    assert not found.fits and [way.same for way in ways] == [False, True]
    assert all(way.estimate.fits for way in ways)
    assert ways[0].words[0] == "model.lora.rank=16"
    assert ways[1].words[0].startswith("hardware.fsdp=")
    smaller = plan(
        LLAMA_8B.replace(lora=LoRASpec(rank=16)), H100.replace(device_kind="A6000"), rows=8, T=4096
    )
    way = remedies(smaller)[0]
    assert way.same and way.words == ("hardware.micro_batch=1",)
    # The words mean what was tried.
    hardware = smaller.experiment.hardware.replace(micro_batch=1)
    again = plan(smaller.experiment.model, hardware, rows=8, T=4096)
    assert again.peak.need == way.estimate.peak.need


def test_smaller_types_are_a_remedy() -> None:
    a6000 = H100.replace(device_kind="A6000", compute_dtype="float32")
    lora = LLAMA_8B.replace(lora=LoRASpec(rank=16))
    found = plan(lora, a6000, rows=8, T=512)
    assert not found.fits
    (way,) = [way for way in remedies(found) if "compute_dtype" in way.words[0]]
    assert not way.same and way.words == ("hardware.compute_dtype=bfloat16",)
    # The words mean what was tried.
    again = plan(lora, a6000.replace(compute_dtype="bfloat16"), rows=8, T=512)
    assert again.peak.need == way.estimate.peak.need
    assert again.step_seconds == way.estimate.step_seconds


def test_one_change_is_enough_where_it_is() -> None:
    assert remedies(plan(rows=256))[0].words == ("hardware.micro_batch=128",)


def test_a_vocabulary_that_is_not_known_here_is_asked_for(tmp_path) -> None:
    small = GPT2.replace(vocab_size=None)
    trained = plan(small)  # a tokenizer that the run trains
    assert trained.parameters == 124_439_808 - (50257 - 4096) * 768
    elsewhere = PackedSpec(seq_len=64, tokenizer=TokenizerSpec(path="hf:org/name"))
    spec = ExperimentSpec(
        name="x", model=small, data=elsewhere, trainer=PretrainSpec(), hardware=H100
    )
    with pytest.raises(RefusedError, match=r"say how many tokens it has, model.vocab_size="):
        estimate(spec, target_by_name(H100))
    path = tmp_path / "tokenizer.json"
    trained_here = train_bpe(["some words, some more words"] * 9, TokenizerSpec(vocab_size=300))
    path.write_text(trained_here.to_hf_json())
    here = spec.replace(data=PackedSpec(seq_len=64, tokenizer=TokenizerSpec(path=str(path))))
    rows = estimate(here, target_by_name(H100)).parameters - (124_439_808 - 50257 * 768)
    assert rows % 768 == 0 and 256 < rows // 768 <= 300


def test_what_a_profile_says_is_taken_as_it_is() -> None:
    given = H100.replace(peak_tflops=60.0, compute_dtype="float32")
    assert target_by_name(given).flops == 60e12
    assert target_by_name(H100.replace(compute_dtype="float32")).flops == 835e12 / 2


def test_traffic_does_not_depend_on_how_the_work_is_cut() -> None:
    one = plan().stages[0].work
    by_heads = plan(hardware=H100.replace(tensor=4)).stages[0].work
    assert one.traffic < by_heads.traffic < 2 * one.traffic  # the residual stream is on each
    by_data = plan(hardware=H100.replace(data_parallel=8)).stages[0].work
    assert by_data.traffic > plan(hardware=H100.replace(fsdp=8)).stages[0].work.traffic
    assert by_data.flops == one.flops


class TestBeforeARun:
    """On the machine that is there, with little memory."""

    def experiment(self, plan: str, memory_gib: float) -> tuple[ExperimentSpec, object]:
        hardware = HardwareSpec(
            device="cpu", memory_gib=memory_gib, peak_tflops=0.1, bandwidth=10.0,
            compilation_cache=None,
        )  # fmt: skip
        model = GPTSpec(vocab_size=4096, max_seq_len=128, n_layers=1, d_model=32, n_heads=2)
        data = PackedSpec(seq_len=64)
        trainer = PretrainSpec(steps=100)
        spec = ExperimentSpec(
            name="x", model=model, data=data, trainer=trainer, hardware=hardware, plan=plan
        )
        return spec, claim(hardware)

    def test_what_cannot_fit_is_refused(self, tmp_path) -> None:
        with pytest.raises(RefusedError, match=r"its train step needs 0\.7 GiB .* has 0\.1 GiB"):
            check_fits(*self.experiment("refuse", 0.1), tmp_path)

    @pytest.mark.parametrize(("plan", "said"), [("warn", 1), ("off", 0)])
    def test_or_said(self, plan: str, said: int, tmp_path) -> None:
        lines: list[str] = []
        sink = logger.add(lines.append, format="{message}", level="WARNING")
        try:
            check_fits(*self.experiment(plan, 0.1), tmp_path)
        finally:
            logger.remove(sink)
        assert len(lines) == said and all("does not fit" in line for line in lines)

    def test_what_fits_begins(self, tmp_path) -> None:
        check_fits(*self.experiment("refuse", 4.0), tmp_path)

    def test_a_machine_that_does_not_say_is_trusted(self, monkeypatch, tmp_path) -> None:
        spec, machine = self.experiment("refuse", 0.1)
        monkeypatch.setattr(type(machine), "memory_gib", lambda self: None)
        assert target_here(machine) is None
        check_fits(spec, machine, tmp_path)

    def test_first_weights_say_how_large_the_vocabulary_is(self, trained_run, tmp_path) -> None:
        """Which the data would, too, but only once it is read."""
        spec, machine = self.experiment("refuse", 0.1)
        shape = {"vocab_size": None, "d_model": 16, "max_seq_len": 64}
        spec = spec.replace(
            model=spec.model.replace(**shape), init_from=str(trained_run),
            samples=SamplesSpec(every=None),
        )  # fmt: skip
        vocabulary = Origin(spec, tmp_path).vocabulary()
        rows = Tokenizer.load(str(trained_run)).vocab_size
        assert vocabulary == rows == estimate(spec, target_here(machine), vocabulary).model.vocab
        with pytest.raises(RefusedError, match="its train step needs"):
            check_fits(spec, machine, tmp_path)
        check_fits(spec.replace(init_from="hf:not/there"), machine, tmp_path)  # the run will tell
        wider = spec.replace(model=spec.model.replace(d_model=32))
        with pytest.raises(RefusedError, match=r"another shape; say model\.d_model=16"):
            check_fits(wider, machine, tmp_path)
        # A run that has begun does not look at its first weights again.
        assert Origin(wider, trained_run).vocabulary() == rows


def test_it_is_quick() -> None:
    plan(LLAMA_8B.replace(d_model=2048, n_heads=16), trainer=GRPOSpec())  # imports
    begin = time.process_time()
    plan(LLAMA_8B, trainer=GRPOSpec())
    assert time.process_time() - begin < 3
