"""The terminal's side of a conversation: lines in, commands, answers as they appear."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm.core.spec import RefusedError
from llm.generate.chat import Conversation, Pieces
from llm.generate.chat_files import load_messages, save_messages
from llm.generate.line_editing import line_editing

_WELCOME = "/help lists the commands; a \\ at the end of a line continues it; Ctrl-D leaves."


class TerminalChat:
    """Reads lines until there are no more.

    At a terminal there are prompts and line editing; otherwise every line is a question and only
    answers go to standard output.

    Args:
        conversation: whom to talk with.
        notes: where what is no answer goes; standard error.
    """

    def __init__(self, conversation: Conversation, notes: Console) -> None:
        self.conversation = conversation
        self._notes = notes
        self._answers = Console(file=sys.stdout, highlight=False)
        self._interactive = sys.stdin.isatty()
        self._edited = self._interactive and sys.stdout.isatty()
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "help": ("", "this list", self._help),
            "reset": ("", "begin anew, with the same system prompt", self._reset),
            "undo": ("", "take back the last question and its answer", self._undo),
            "retry": ("", "another answer to the last question", self._retry),
            "system": ("[TEXT]", "what the model is told first; or nothing", self._system),
            "temperature": ("X", "0 takes the likeliest token", self._temperature),
            "top_p": ("X", "sample from the likeliest tokens that hold this much", self._top_p),
            "max_tokens": ("N", "tokens per answer at most", self._max_tokens),
            "seed": ("N", "draw the following answers from this seed", self._seed),
            "save": ("FILE", "the conversation as JSON lines, to a new file", self._save),
            "load": ("FILE", "go on from such a file", self._load),
            "exit": ("", "leave, as Ctrl-D does", self._exit),
        }  # fmt: skip
        self._over = False

    @property
    def commands(self) -> list[str]:
        """What may be typed, for completion."""
        return [f"/{name}" for name in self._commands]

    def run(self) -> None:
        """Talk until the user leaves or the input ends."""
        if self._interactive:
            self._note(_WELCOME)
        with line_editing(self.commands) if self._edited else nullcontext():
            while not self._over:
                try:
                    self._take(self._read())
                except EOFError:
                    self._over = True
                except RefusedError as error:
                    self._note(str(error), "red")
                except KeyboardInterrupt:
                    self._over = not self._interactive
                    self._note("\nCtrl-D or /exit leaves.")

    def _take(self, line: str) -> None:
        """One line: a command or a question."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self._show(self.conversation.ask(line.strip()))
            return
        name, _, rest = line[1:].strip().partition(" ")
        if name not in self._commands:
            raise RefusedError(
                f"/{name}: no such command; /help lists them. To say it to the model, put a space "
                f"in front"
            )
        usage, _, act = self._commands[name]
        if bool(rest.strip()) > bool(usage) or (usage.isalpha() and not rest.strip()):
            raise RefusedError(f"expected {f'/{name} {usage}'.strip()}")
        act(rest.strip())

    def _read(self) -> str:
        """A line, with those that it continues on.

        Raises:
            EOFError: there are no more.
        """
        line = self._read_one("> ")
        while line.endswith("\\"):
            try:
                line = f"{line[:-1]}\n{self._read_one('. ')}"
            except EOFError:
                return line[:-1]
        return line

    def _read_one(self, prompt: str) -> str:
        if self._edited:
            return input(prompt)
        if self._interactive:
            self._notes.out(prompt, end="")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    def _show(self, pieces: Pieces) -> None:
        """Write an answer as it appears; Ctrl-C ends it, a second one at once."""
        try:
            with _first_interrupt() as interrupted, closing(pieces):
                for piece in pieces:
                    self._answers.out(printable(piece), end="")
                    if interrupted.is_set():
                        break
        except KeyboardInterrupt:
            pass
        finally:
            self._answers.out("")
        if self.conversation.cut:
            self._note(f"[cut: {self.conversation.cut}]")

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Text(printable(text), style), soft_wrap=True)

    def _help(self, _: str) -> None:
        for name, (usage, meaning, _act) in self._commands.items():
            self._note(f"{f'/{name} {usage}':<16} {meaning}")
        now = self.conversation.sampling
        self._note(
            f"Now: temperature {now.temperature:g}, top_p {now.top_p:g}, "
            f"max_tokens {now.max_new_tokens}, {len(self.conversation.turns)} messages"
        )

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._note("The conversation begins anew.")

    def _undo(self, _: str) -> None:
        self._note(f"Taken back: {self.conversation.undo()}")

    def _retry(self, _: str) -> None:
        self._show(self.conversation.retry())

    def _system(self, text: str) -> None:
        self.conversation.set_system(text or None)
        self._note("The model is told that first." if text else "There is no system prompt.")

    def _temperature(self, text: str) -> None:
        self._set("temperature", temperature=_number(text))

    def _top_p(self, text: str) -> None:
        self._set("top_p", top_p=_number(text))

    def _max_tokens(self, text: str) -> None:
        self._set("max_tokens", max_new_tokens=_whole(text))

    def _set(self, name: str, **change: Any) -> None:
        self.conversation.sampling = replace(self.conversation.sampling, **change)
        self._note(f"{name} is {next(iter(change.values())):g} now.")

    def _seed(self, text: str) -> None:
        self.conversation.set_seed(_whole(text))
        self._note(f"The following answers are drawn from seed {text}.")

    def _save(self, text: str) -> None:
        path = Path(text).expanduser()
        save_messages(path, self.conversation.messages)
        self._note(f"{path} has {len(self.conversation.messages)} messages.")

    def _load(self, text: str) -> None:
        self.conversation.load(load_messages(Path(text).expanduser()))
        self._note(f"The conversation has {len(self.conversation.messages)} messages now.")

    def _exit(self, _: str) -> None:
        self._over = True


def printable(text: str) -> str:
    """A text that does nothing to a terminal but appear in it.

    Control characters other than newline and tab (ESC begins the sequences that a terminal obeys)
    become their pictures; those of the second set, and characters that turn the direction of
    writing, their numbers.
    """
    return _UNSAFE.sub(lambda match: _picture(match[0]), text)


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _picture(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RefusedError(f"{text}: expected a number") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise RefusedError(f"{text}: expected a whole number below a billion")
    return int(text)


@contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """While this is open, the first Ctrl-C sets the event; the next raises KeyboardInterrupt.

    So the model is never interrupted in the middle of a step.
    """
    event = threading.Event()

    def note(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
