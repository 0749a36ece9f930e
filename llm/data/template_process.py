"""A chat template at work: the program that `chat_template.py` runs in a process of its own.

A template comes with a model, from anywhere, and it is a program: it may loop for ever, build texts
of gigabytes, or look for a way from its values to Python. So it runs where that harms nobody:

* Jinja's sandbox refuses private attributes and changes of what it is given;
* the process has given up its right to open files and sockets, so that a way out of the sandbox
  leads nowhere;
* the kernel ends it when one text takes too much time, and gives it no more than so much memory.

The bounds hold whatever the template does, since they do not look at what it does.

Reads one JSON object per line from standard input and answers with one per line: first the template
and its bounds, then the variables of one text after the other. Imports nothing of this package.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.debug  # used when an error is explained
import jinja2.ext
from jinja2 import TemplateError, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class SaidError(TemplateError):
    """What a template says through `raise_exception`."""


class TooLongError(Exception):
    """The text is longer than allowed."""


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: the text between them is the assistant's."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.used = False
        self.begin()

    def begin(self) -> None:
        """A new text."""
        self.written = 0
        self.marked: list[tuple[int, str]] = []

    def parse(self, parser: Parser) -> nodes.Node:
        """The block becomes a call, through which its text passes."""
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        text = str(caller())
        self.marked.append((self.written, text))
        return text

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Where the marked parts are in the text; None if there are no tags, or one cannot tell.

        Inside a macro or `{% set %}` block, text is collected before it is written: where it ends
        up is not known when it is marked. Then it is not where it should be.
        """
        if not self.used or any(not text.startswith(part, start) for start, part in self.marked):
            return None
        return [(start, start + len(part)) for start, part in self.marked]


class PublicNamespace(Namespace):
    """Jinja's namespace, without private names. (`namespace(self=1)` is a value too.)"""

    def __init__(*args: Any, **values: Any) -> None:
        values = dict(*args[1:], **values)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no private attribute {name!r}")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, but what is forbidden is an error at once and not an empty value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Called for an attribute that must not be read."""
        raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__!r} objects")


def environment() -> Sandbox:
    """Jinja as chat templates expect it: what Hugging Face's models are written for."""
    made = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    del made.globals["lipsum"]
    made.globals["namespace"] = PublicNamespace
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, leaves `<` and emoji as they are, and keys in their order."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> str:
    raise SaidError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class Renderer:
    """One compiled template.

    Args:
        source: Jinja source.
        longest: characters of the longest text it may make.
    """

    def __init__(self, source: str, longest: int) -> None:
        made = environment()
        self._longest = longest
        self._template = made.from_string(source)
        found = next(e for e in made.extensions.values() if isinstance(e, Generation))
        self._generation = found

    def render(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The text and where the assistant's parts of it are."""
        self._generation.begin()
        pieces = []
        for piece in self._template.generate(variables):
            pieces.append(str(piece))
            self._generation.written += len(piece)
            if self._generation.written > self._longest:
                raise TooLongError(f"more than {self._longest} characters")
        text = "".join(pieces)
        return {"text": text, "spans": self._generation.spans(text)}


def give_up_rights(memory: int) -> None:
    """From here on: no files, no sockets, no more than `memory` bytes."""
    # What is read at its first use is read now: the time zone, codecs, Python's view of letters.
    environment().from_string("{{ é ~ '\\u00e9' ~ strftime_now('%c') }}").render()
    for limit, value in [("RLIMIT_AS", memory), ("RLIMIT_NOFILE", 0), ("RLIMIT_FSIZE", 0)]:
        try:
            resource.setrlimit(getattr(resource, limit), (value, value))
        except (AttributeError, ValueError, OSError):  # macOS knows no limit of memory
            continue


def explained(error: BaseException) -> dict[str, Any]:
    """An error as data: what kind it is, what it says, and the template's line if known."""
    kinds = {
        SaidError: "said",
        TemplateSyntaxError: "syntax",
        SecurityError: "forbidden",
        UndefinedError: "undefined",
        TooLongError: "long",
        MemoryError: "memory",
    }
    kind = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "other")
    message = str(error) if kind != "other" else f"{type(error).__name__}: {error}"
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return {"error": kind, "message": message[:2000], "line": line}


def main() -> None:
    """Answer requests until there are no more."""
    first = json.loads(sys.stdin.buffer.readline())
    renderer: Renderer | None = None
    give_up_rights(first["memory"])
    request: dict[str, Any] | None = first
    while request is not None:
        # The time of this process only: on a busy machine a text may take longer. The signal ends
        # it, in the middle of whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, first["seconds"])
        try:
            if renderer is None:
                renderer = Renderer(first["source"], first["longest"])
                answer: dict[str, Any] = {}
            else:
                answer = renderer.render(request)
        except Exception as error:
            answer = explained(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        request = json.loads(line) if line else None


if __name__ == "__main__":
    main()
