"""How a question is put to a model: in its chat template, or as plain text after examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm.core.spec import RefusedError
from llm.data.chat_template import ChatTemplate
from llm.data.chat_tokens import encode_chat, template_of
from llm.data.tokenizer import Tokenizer
from llm.eval.questions import Question, QuestionSet
from llm.hub.pretrained import Pretrained

_PLAIN_SHOTS = 3  # in plain text a model has to be shown what is asked of it


@dataclass(frozen=True)
class Asking:
    """Turns questions into tokens.

    Args:
        tokenizer: of the model.
        template: its chat template; None: plain text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer: a model that goes on with plain text asks the next question."""
        return () if self.template else ("\n",)

    def prompt(self, question: Question, shots: Sequence[Question]) -> list[int]:
        """Everything before the answer."""
        if self.template is not None:
            messages = []
            for shot in shots:
                messages.append({"role": "user", "content": shot.text})
                messages.append({"role": "assistant", "content": shot.answer})
            messages.append({"role": "user", "content": question.text})
            return encode_chat(self.tokenizer, self.template, messages)
        return [self.tokenizer.start_id, *self.tokenizer.encode(self._plain(question, shots))]

    def choice(self, question: Question, shots: Sequence[Question], answer: str) -> list[int]:
        """Tokens of an answer after its prompt, as they come when both are encoded together."""
        if self.template is not None:
            return self.tokenizer.encode(answer)
        before = self._plain(question, shots)
        return continuation(self.tokenizer, before, f" {answer}")

    @staticmethod
    def _plain(question: Question, shots: Sequence[Question]) -> str:
        parts = [f"Question: {shot.text}\nAnswer: {shot.answer}\n\n" for shot in shots]
        return "".join([*parts, f"Question: {question.text}\nAnswer:"])


def continuation(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Tokens that a text adds to the tokens of what comes before it.

    Those of both together, less as many as those before alone: where a token spans the border, the
    difference is what is scored (as in lm-evaluation-harness).
    """
    return tokenizer.encode(before + text)[len(tokenizer.encode(before)) :]


def asking(pretrained: Pretrained, chat: str) -> Asking:
    """How this model is asked.

    Args:
        pretrained: the model.
        chat: `auto`, `always` or `never` in its chat template.

    Raises:
        RefusedError: it has no template, and `chat=always`.
    """
    source, tokenizer = pretrained.chat_template, pretrained.tokenizer
    if chat == "always" and source is None:
        raise RefusedError(
            f"chat=always: {pretrained.source} has no chat template; chat=auto asks in plain "
            "text then"
        )
    if chat == "never" or source is None:
        return Asking(tokenizer, None)
    return Asking(tokenizer, template_of(tokenizer, source, pretrained.end_ids[0]))


def shots_for(how: Asking, wanted: int | None) -> int:
    """Examples before a question."""
    if wanted is not None:
        return wanted
    return 0 if how.template else _PLAIN_SHOTS


def check_length(how: Asking, task: QuestionSet, context: int, max_new_tokens: int) -> None:
    """Refuse questions that do not fit, rather than ask half of them.

    Args:
        how: they are asked.
        task: the questions.
        context: tokens that a question has room in, with its answer.
        max_new_tokens: of an answer that is written; of choices, the longest counts.

    Raises:
        RefusedError: with the longest.
    """
    answer = max_new_tokens
    if task.picks:  # nothing follows a choice's last token
        choices = ((q, text) for q in task.questions for text in q.choices)
        answer = max(len(how.choice(q, task.shots, text)) for q, text in choices) - 1
    longest = max(len(how.prompt(question, task.shots)) for question in task.questions)
    if longest > context - answer:
        raise RefusedError(
            f"task {task.name}: a prompt of {longest} tokens, and the context has room for "
            f"{context - answer}; fewer shots or max_new_tokens, or a larger context"
        )
