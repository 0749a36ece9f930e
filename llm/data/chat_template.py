"""Chat templates: from a conversation to the text that a model was trained on.

A template is a Jinja program that comes with a model. It runs in a process of its own with bounds
on time, memory and rights (see `template_process.py`), started once per template; a text then costs
about a tenth of a millisecond more than it would here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError

# For models without a template of their own: ChatML. The assistant's tokens are marked.
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_PROGRAM = Path(__file__).with_name("template_process.py")
_SECONDS = 2.0  # of processor time for one text; real ones take a thousandth of it
_MEMORY = 2**29  # bytes of address space, Python's own 50 MB included
_LONGEST = 2**24  # characters of text
# What the process needs to find Python's libraries and the local time; it gets no secrets.
_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL")

_ADVICE = {
    "said": "the template does not accept this conversation: ",
    "syntax": "not a Jinja template: ",
    "forbidden": "it reaches for what templates may not have: ",
    "undefined": "it uses what is not there: ",
    "long": "the text becomes too long: ",
    "memory": f"it needs more than {_MEMORY // 2**20} MiB",
    "other": "it fails with ",
}


def read_template(path: str) -> str:
    """The source of a template in a file.

    Raises:
        RefusedError: there is none.
    """
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"template={path}: cannot be read: {error}") from None


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    assistant_spans: tuple[tuple[int, int], ...] | None
    """Characters [start, stop) of the assistant's parts, as marked by the template's
    `{% generation %}` tags. None if it has no such tags, or has them where text is collected
    before it is written (in macros and set blocks), so that its place in the text is not known."""


class ChatTemplate:
    """Renders conversations; safe to use from several threads, and it can be pickled.

    Args:
        source: Jinja source as found in tokenizer_config.json, chat_template.jinja or a GGUF file.
        bos: text of the token that begins a document, the template's `bos_token`.
        eos: text of the token that ends one, the template's `eos_token`.

    Raises:
        RefusedError: not a Jinja template, with the line and what is wrong there.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self.source, self.bos, self.eos = source, bos, eos
        self._lock = threading.Lock()
        self._process: _Process | None = None
        with self._lock:
            self._running()

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, str, str]]:
        return ChatTemplate, (self.source, self.bos, self.eos)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Rendered:
        """The text of a conversation.

        Args:
            messages: each with `role` and `content`, and what else the template looks at.
            add_generation_prompt: end with the beginning of an answer.
            tools: JSON schemas of the functions that the model may call.
            variables: what else the template looks at, such as `enable_thinking=False`.

        Raises:
            RefusedError: something in it is no JSON data, the template does not accept it (the
                message says why, in the template's words), or it goes beyond its bounds.
        """
        standard = {"bos_token": self.bos, "eos_token": self.eos, "documents": None}
        values = {
            **standard,
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._lock:
            answer = self._ask(self._running(), values)
        spans = answer["spans"]
        if spans is not None:
            spans = tuple((start, stop) for start, stop in spans)
        return Rendered(answer["text"], spans)

    def _running(self) -> _Process:
        """The process, started if there is none (or it is that of the process we forked from)."""
        if self._process is None or self._process.owner != os.getpid():
            process = self._process = _Process()
            weakref.finalize(self, process.end)
            bounds = {"seconds": _SECONDS, "memory": _MEMORY, "longest": _LONGEST}
            self._ask(process, {"source": self.source, **bounds})
        return self._process

    def _ask(self, process: _Process, request: dict[str, Any]) -> dict[str, Any]:
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise RefusedError(f"chat template: messages, tools and variables: {error}") from None
        try:
            reply = process.exchange(line)
        except BaseException:  # an interrupt: what comes next would be the answer to this
            self._stop(process)
            raise
        if not reply.endswith(b"\n"):
            status = self._stop(process)
            if status == -signal.SIGPROF:
                problem = f"it does not come to an end within {_SECONDS} seconds"
            else:
                problem = f"its process ended with status {status}"
            raise RefusedError(f"chat template: {problem}")
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            if "source" in request or answer["error"] == "memory":
                self._stop(process)
            where = f", line {answer['line']}" if answer["line"] else ""
            # A template's words end up in a terminal.
            said = "".join(c if c.isprintable() else " " for c in answer["message"])
            raise RefusedError(f"chat template{where}: {_ADVICE[answer['error']]}{said}")
        return answer

    def _stop(self, process: _Process) -> int:
        self._process = None
        return process.end()


class _Process:
    """The running program, and the two pipes to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._popen = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        assert self._popen.stdin and self._popen.stdout
        self._requests, self._replies = self._popen.stdin, self._popen.stdout

    def exchange(self, line: bytes) -> bytes:
        """Its answer to a request; without a newline at the end if it has ended before."""
        try:
            self._requests.write(line)
            self._requests.flush()
        except BrokenPipeError:
            return b""
        return self._replies.readline()

    def end(self) -> int:
        """Its exit status; if it is still running, it no longer is."""
        if self.owner != os.getpid():
            return 0
        self._popen.kill()
        for pipe in (self._requests, self._replies):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        return self._popen.wait()
