"""Pretraining and fine-tuning: batches are rows of data, the loss is that of the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llm.core.mesh import put_whole, replicated
from llm.data.loader import Loader
from llm.report.preview import show_example
from llm.train.compiled import Compiled
from llm.train.evaluate import evaluate
from llm.train.experiment import ExperimentSpec
from llm.train.origin import Origin
from llm.train.samples import Sampler, sampler
from llm.train.state import TrainState
from llm.train.trainer import Drawn, Work, Workbench


class Supervised:
    """Next-token prediction on what the data says is trained.

    Args:
        experiment: the whole of it.
        origin: where tokenizer and template come from.
        share: of each batch, see `llm.core.mesh.host_share`.
        questions: held-out prompts that are answered with the samples.
        preview: examples to show at the start.
    """

    def __init__(
        self,
        experiment: ExperimentSpec,
        origin: Origin,
        share: tuple[int, int],
        questions: int = 0,
        preview: int = 0,
    ) -> None:
        self._experiment = experiment
        self._questions, self._preview = questions, preview
        self._chat = origin.chat()
        self._data = experiment.data.build(
            experiment.seed,
            *share,
            origin.tokenizer(),
            self._chat,
        )
        self.tokenizer = self._data.tokenizer
        self.fingerprint = self._data.fingerprint

    def begin(self, bench: Workbench) -> Work:
        """The parts for the loop."""
        if not bench.resumed:
            for number, pieces in enumerate(self._data.examples(self._preview), 1):
                show_example(number, pieces)
        eval_step = Compiled(jax.jit(bench.stepper.eval_step), bench.stop, bench.ledger)
        # Tokens that only the model has stand for no bytes.
        more = bench.model.vocab - self.tokenizer.vocab_size
        token_bytes = np.pad(self.tokenizer.token_bytes, (0, more))
        token_bytes_V = put_whole(token_bytes, replicated(bench.machine.mesh))

        def held_out(params: Any) -> dict[str, float]:
            batches = self._data.eval_batches(self._experiment.eval.batches)
            placed = ((source, bench.place(batch)) for source, batch in batches)
            names = self._data.source_names
            return evaluate(eval_step, params, token_bytes_V, placed, names, bench.stop)

        return Work(
            Rows(self._data.batches()),
            held_out if self._data.n_eval_batches else None,
            self._sampler(bench) if self._experiment.samples.every else None,
        )

    def score(self, metrics: dict[str, float]) -> float | None:
        """The held-out loss."""
        return metrics.get("eval/loss")

    def _sampler(self, bench: Workbench) -> Sampler | None:
        """Samples are drawn on a thread, since it may compile: a stop need not wait for that."""
        sample = sampler(
            self._experiment.samples,
            model=bench.model,
            tokenizer=self.tokenizer,
            chat=self._chat,
            questions=self._data.questions(self._questions),
            stop_ids=bench.stop_ids,
            machine=bench.machine,
            seed=self._experiment.seed,
        )
        if sample is None:
            return None
        return lambda params, step: bench.stop.wait_for(lambda: sample(params, step))


@dataclass
class Rows:
    """Batches of the data, whatever the weights."""

    loader: Loader

    def waits(self) -> bool:
        """Never."""
        return False

    def next(self, state: TrainState) -> Drawn:
        """The next batch."""
        del state
        return Drawn(next(self.loader), {})

    def cursor(self) -> dict[str, Any]:
        """Where the loader is."""
        return self.loader.cursor()

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go on where `cursor()` was taken."""
        self.loader.restore(cursor)

    def close(self) -> None:
        """Stop reading ahead."""
        self.loader.close()
