"""A conversation with a model: its messages, and answers that appear piece by piece.

    conversation = converse(llm.load("hf:org/name"), system="You are brief.")
    for piece in conversation.ask("Why is the sky blue?"):
        ...

Keys and values stay in the session's cache from turn to turn: each answer begins with the tokens
that were not there before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

from llm.core.spec import RefusedError
from llm.data.chat_template import ChatTemplate
from llm.data.chat_tokens import encode_chat, template_of
from llm.data.tokenizer import Tokenizer
from llm.generate.language_model import LanguageModel
from llm.generate.specs import Sampling

Pieces = Generator[str, None, None]


class Session(Protocol):
    """What a conversation needs of `llm.generate.engine.Session`: one text, and its cache."""

    def stream(self, ids: list[int], sampling: Sampling, stop_ids: Sequence[int]) -> Any:
        """A generator of lists of new ids, the stop id included; `ids` is the whole text before."""


class Conversation:
    """Messages between a user and a model.

    Args:
        new_session: from a seed to a session.
        tokenizer, template: make the ids of a conversation.
        stop_ids: tokens that end an answer; not part of it.
        context: tokens that the model sees at most.
        sampling: how answers are drawn; may be set at any time.
        system: what the model is told first; None sends no such message.
        seed: all randomness follows from it.

    Raises:
        RefusedError: the template does not accept a system prompt, or not even a question.
    """

    def __init__(
        self,
        new_session: Callable[[int], Any],
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        stop_ids: Sequence[int],
        context: int,
        sampling: Sampling,
        system: str | None = None,
        seed: int = 0,
    ) -> None:
        self._new_session = new_session
        self._tokenizer, self._template = tokenizer, template
        self._stop_ids, self._context = tuple(stop_ids), context
        self.sampling = sampling
        self.turns: list[dict[str, Any]] = []
        """The messages after the system prompt."""
        self.cut: str | None = None
        """Why the last answer ends where it does, if not because the model ended it."""
        self.set_system(system)
        self.set_seed(seed)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages, the system prompt first if there is one."""
        return self._with_system(self.turns)

    def ask(self, text: str) -> Pieces:
        """Say something and get the answer in pieces.

        A piece may be empty while a character is incomplete. Closing the generator early ends the
        answer; what there is of it stays in the conversation.

        Raises:
            RefusedError: the conversation has outgrown what the model sees, or the template does
                not accept it. It is as it was before then.
        """
        return self._answer([*self.turns, {"role": "user", "content": text}])

    def retry(self) -> Pieces:
        """Another answer to the last question, as `ask` gives it.

        Raises:
            RefusedError: there is none, or as for `ask`.
        """
        return self._answer(self.turns[: self._last_question() + 1])

    def undo(self) -> str:
        """Take back the last question and what followed.

        Returns:
            The question.

        Raises:
            RefusedError: there is none.
        """
        last = self._last_question()
        question = str(self.turns[last]["content"])
        self.turns = self.turns[:last]
        return question

    def reset(self) -> None:
        """Begin anew, with the same system prompt."""
        self.turns = []

    def set_system(self, system: str | None) -> None:
        """Change what the model is told first; None sends no such message.

        Raises:
            RefusedError: the template does not accept one; nothing has changed then.
        """
        before = getattr(self, "system", None)
        self.system = system
        try:
            self._ids(self.turns or [{"role": "user", "content": "?"}])
        except RefusedError:
            self.system = before
            raise

    def set_seed(self, seed: int) -> None:
        """Draw the following answers anew from this seed."""
        if seed < 0:
            raise RefusedError(f"seed={seed}: expected 0 or more")
        self._session = self._new_session(seed)

    def load(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Go on from other messages; a system prompt is the first or there is none.

        Raises:
            RefusedError: the template does not accept them; nothing has changed then.
        """
        copied = [dict(message) for message in messages]
        leads = bool(copied) and copied[0].get("role") == "system"
        before = self.system, self.turns
        self.system = str(copied[0]["content"]) if leads else None
        self.turns = copied[leads:]
        try:
            self._ids(self.turns or [{"role": "user", "content": "?"}])
        except RefusedError:
            self.system, self.turns = before
            raise

    def _answer(self, turns: list[dict[str, Any]]) -> Pieces:
        ids = self._ids(turns)
        room = self._context - len(ids)
        if room < 1:
            raise RefusedError(
                f"the conversation would be {len(ids)} tokens long and the model sees "
                f"{self._context}: /save FILE keeps it, /undo takes back the last question, /reset "
                f"begins anew"
            )
        return self._stream(turns, ids, room)

    def _stream(self, turns: list[dict[str, Any]], ids: list[int], room: int) -> Pieces:
        before, self.cut = self.turns, "interrupted"
        answer = {"role": "assistant", "content": ""}
        self.turns = [*turns, answer]
        limit = min(self.sampling.max_new_tokens, room)
        sampling = replace(self.sampling, max_new_tokens=limit)
        decoder, ended = self._tokenizer.decode_stream(), False
        try:
            with closing(self._session.stream(ids, sampling, self._stop_ids)) as stream:
                for new in stream:
                    ended = bool(new) and new[-1] in self._stop_ids
                    piece = "".join(map(decoder.push, new[:-1] if ended else new))
                    answer["content"] += piece
                    yield piece
            rest = decoder.flush()
            answer["content"] += rest
            yield rest
        except Exception:
            self.turns = before
            raise
        full = "the model sees no more" if limit == room else f"{limit} tokens"
        self.cut = None if ended else full

    def _last_question(self) -> int:
        found = [i for i, message in enumerate(self.turns) if message["role"] == "user"]
        if not found:
            raise RefusedError("there is no question yet")
        return found[-1]

    def _with_system(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, *turns]

    def _ids(self, turns: list[dict[str, Any]]) -> list[int]:
        """Of a conversation that the model is to go on with."""
        return encode_chat(self._tokenizer, self._template, self._with_system(turns))


def converse(
    lm: LanguageModel,
    *,
    sampling: Sampling | None = None,
    system: str | None = None,
    template: str | None = None,
    seed: int = 0,
) -> Conversation:
    """Begin a conversation.

    Args:
        lm: the model.
        sampling: how answers are drawn.
        system: what it is told first; None sends no such message.
        template: source of a chat template; None takes the model's own.
        seed: all randomness follows from it.

    Raises:
        RefusedError: there is no template, or it accepts no question.
    """
    source = lm.chat_template if template is None else template
    if source is None:
        raise RefusedError(
            "this model has no chat template: it goes on with texts and was not trained to answer. "
            'Try launch/generate.py prompt="...", or give it a template with template=FILE'
        )
    return Conversation(
        lm.engine.session,
        lm.tokenizer,
        template_of(lm.tokenizer, source, lm.stop_ids[0]),
        stop_ids=lm.stop_ids,
        context=lm.spec.max_seq_len,
        sampling=sampling or Sampling(),
        system=system,
        seed=seed,
    )
