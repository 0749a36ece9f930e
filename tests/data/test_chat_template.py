"""Chat templates: the same text as transformers', spans of the assistant, and bounds that hold."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm.core.spec import RefusedError
from llm.data import chat_template
from llm.data.chat_template import ChatTemplate, Rendered

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

DEFAULT_SYSTEM = """\
{%- for message in messages -%}
  {%- if loop.first and message.role != 'system' -%}
    {{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

INST = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the system message, user and assistant must alternate!') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') }}
        {{- turn['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' ~ turn['content'].strip() ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

HEADERS = """\
{{- bos_token }}
{%- macro header(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro -%}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | trim %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{{- header('system') + 'Today: ' + (date_string if date_string is defined else 'unknown') }}
{{- '\\n\\n' + ns.system + '<|eot_id|>' }}
{%- if tools is not none %}
    {{- header('user') }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + '\\n\\n' }}
    {%- endfor %}
    {{- tools | tojson + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- header(message.role) + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

# Blocks on lines of their own, with comments: what trim_blocks and lstrip_blocks are for.
LINES = """\
{# one message per line #}
    {% for message in messages %}
    {% if message.role == 'system' %}
System: {{ message.content }}
    {% else %}
{{ message.role | capitalize }}: {{ message.content | replace('\\n', ' ') }}
    {% endif %}
    {% endfor %}
  {% if add_generation_prompt %}
Assistant:
  {% endif %}

"""

TEMPLATES = {
    "chatml": CHATML,
    "default system prompt": DEFAULT_SYSTEM,
    "inst": INST,
    "headers": HEADERS,
    "lines": LINES,
}

CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one question": [{"role": "user", "content": "Hi"}],
    "with system": [
        {"role": "system", "content": "  Be kind. "},
        {"role": "user", "content": "Who are you?\n"},
    ],
    "several turns": [
        {"role": "user", "content": "1 < 2 && \"a\" & 'b'"},
        {"role": "assistant", "content": " Yes.\n\n\tIndeed "},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %} <b>&amp;</b>"},
    ],
    "emoji": [
        {"role": "user", "content": "👩‍👩‍👧 Grüße 🙂"},
        {"role": "assistant", "content": "🇨🇭 日本語 \u202e"},
        {"role": "user", "content": "\x1b[31m\x00"},
    ],
    "empty": [
        {"role": "system", "content": ""},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
    ],
}

TOOLS = [
    {
        "type": "function",
        "function": {"name": "größe", "parameters": {"z": {"type": "<int>"}, "a": ["'", "🙂"]}},
    }
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' tokenizer with a bos and an eos token, which templates see."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def rendered(source: str, messages: Any = (), **variables: Any) -> Rendered:
    return ChatTemplate(source, "<s>", "</s>").render(messages, **variables)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(theirs: Any, name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], "<s>", "</s>")
    variables: list[dict[str, Any]] = [
        {},
        {"add_generation_prompt": True},
        {"tools": TOOLS, "date_string": "1 May"},
    ]
    compared = 0
    for case, messages in CONVERSATIONS.items():
        for extra in variables:
            expected = theirs.apply_chat_template(
                messages, chat_template=TEMPLATES[name], tokenize=False, **extra
            )
            ours = template.render(messages, **extra)
            assert ours == Rendered(expected, None), (case, extra)
            compared += 1
    assert compared >= 15


def test_the_year_comes_from_the_clock() -> None:
    assert rendered("{{ strftime_now('%Y') }}").text == time.strftime("%Y")


GENERATION = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
<a>{% generation %}{{ message.content }}</a>{% endgeneration %}

{% else %}
<u>{{ message.content }}</u>
{% endif %}
{% endfor %}
"""


def test_spans_of_the_assistant(theirs: Any) -> None:
    messages = [
        {"role": "user", "content": "🙂 a"},
        {"role": "assistant", "content": "b é"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": ""},
    ]
    got = rendered(GENERATION, messages)
    assert got.text == theirs.apply_chat_template(
        messages, chat_template=GENERATION, tokenize=False
    )
    assert got.assistant_spans is not None
    assert [got.text[a:b] for a, b in got.assistant_spans] == ["b é</a>", "</a>"]
    # The next text begins anew.
    assert rendered(GENERATION, messages[:1]).assistant_spans == ()


def test_spans_are_not_given_where_they_are_not_known() -> None:
    macro = "{% macro m(x) %}pp{% generation %}{{ x }}{% endgeneration %}{% endmacro %}"
    assert rendered("no tags").assistant_spans is None
    assert rendered(macro + "{{ m('text') }}") == Rendered("pptext", None)
    assert rendered(macro.replace("pp", "") + "ab{{ m('text') }}").assistant_spans == ((2, 6),)


def test_a_template_says_why_it_does_not_accept_a_conversation() -> None:
    template = ChatTemplate(INST, "<s>", "</s>")
    twice = CONVERSATIONS["one question"] * 2
    with pytest.raises(RefusedError, match=r"line 10: .* user and assistant must alternate!"):
        template.render(twice)
    assert template.render(twice[:1]).text == "<s>[INST] Hi [/INST]"


def test_what_a_template_says_cannot_control_the_terminal() -> None:
    with pytest.raises(RefusedError) as refusal:
        rendered("{{ raise_exception('\x1b[31m\\u009b red \n \x07' ~ 'x' * 9999) }}")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 2200


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a\nb {% if %}", "line 2: not a Jinja template: Expected an expression"),
        ("{% for x in y %}", "not a Jinja template: Unexpected end of template"),
        ("{{ 1 | nonsense }}", "No filter named 'nonsense'"),
        ("\n{{ person.name }}", "line 2: it uses what is not there: 'person' is undefined"),
        ("{{ messages[0].x.y }}", "it uses what is not there"),
        ("{{ 1 / 0 }}", "fails with ZeroDivisionError"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_errors_are_refused(source: str, problem: str) -> None:
    with pytest.raises(RefusedError, match=problem):
        rendered(source, CONVERSATIONS["one question"])


def test_only_plain_data_goes_in() -> None:
    template = ChatTemplate(CHATML, "", "")
    with pytest.raises(RefusedError, match="object is not JSON serializable"):
        template.render([{"role": "user", "content": object()}])
    assert "Hi" in template.render(CONVERSATIONS["one question"]).text


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__",
        "''.__class__.__mro__",
        "''['__class__']",
        "''|attr('__class__')",
        "['']|map(attribute='__class__')|list",
        "cycler.__init__.__globals__",
        "joiner.__init__.__globals__['os'].popen('id').read()",
        "raise_exception.__globals__",
        "strftime_now.__code__",
        "'{0.__class__}'.format(1)",
        "'{x.__class__}'.format_map({'x': 1})",
        "dict.mro()",
        "messages.append(1)",
        "messages[0].update(role='x')",
        "self._TemplateReference__context",
        "namespace(__class__=1)",
        "namespace(**{'_Namespace__attrs': 1})",
        "(messages|groupby('__class__'))",
    ],
)
def test_a_template_does_not_reach_python(expression: str) -> None:
    with pytest.raises(RefusedError, match="what templates may not have"):
        rendered("{{ " + expression + " }}", CONVERSATIONS["one question"])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "needs more than 512 MiB"),
        ("{{ [0] * 10**9 }}", "needs more than 512 MiB"),
        ("{{ '%99999999999d' % 1 }}", "needs more than 512 MiB"),
        ("{{ '{:99999999999}'.format(1) }}", "needs more than 512 MiB"),
        ("{{ 'a'|center(10**11) }}", "needs more than 512 MiB"),
        (
            "{% set n = namespace(a='aaaaaaaa') %}{% for i in range(99) %}"
            "{% set n.a = n.a ~ n.a %}{% endfor %}",
            "needs more than 512 MiB",
        ),
        ("{% for i in range(90000) %}{{ 'x' * 10000 }}{% endfor %}", "16777216 characters"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
    ],
)
def test_bounds_of_memory(source: str, problem: str) -> None:
    with pytest.raises(RefusedError, match=problem):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set x = 9 ** (9 ** 9) %}",
        # A list of lists of lists: little memory, but as text it has no end.
        "{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}"
        "{% endfor %}{{ n.a|tojson|length }}",
    ],
)
def test_bounds_of_time(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(RefusedError, match=r"within 0\.3 seconds|more than 512 MiB|Recursion"):
        rendered(source)
    assert time.monotonic() - start < 20


def test_after_an_endless_text_comes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_SECONDS", 0.2)
    endless = "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if go %}" + endless + "{% endif %}done", "", "")
    for _ in range(2):
        with pytest.raises(RefusedError, match="does not come to an end"):
            template.render([], go=True)
        assert template.render([]).text == "done"


def test_its_process_opens_no_files_and_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even past the sandbox: what a way out of it would meet."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    template = ChatTemplate("x", "", "")
    process = template._process
    assert process is not None
    pid = process._popen.pid
    with open(f"/proc/{pid}/limits") as file:  # noqa: PTH123
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max open files"] == ["0", "0"]
    with open(f"/proc/{pid}/environ") as file:  # noqa: PTH123
        assert "secret" not in file.read()
    assert os.getsid(pid) != os.getsid(0)
    del template


def test_the_process_ends_with_the_template() -> None:
    template = ChatTemplate("x", "", "")
    process = template._process
    assert process is not None and process._popen.poll() is None
    del template
    assert process._popen.poll() is not None


def test_an_interrupt_does_not_mix_up_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0] }}", "", "")
    exchange = chat_template._Process.exchange

    def interrupted(self: Any, line: bytes) -> bytes:
        self._requests.write(line)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_template._Process, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        template.render(["first"])  # type: ignore[list-item]
    monkeypatch.setattr(chat_template._Process, "exchange", exchange)
    assert template.render(["second"]).text == "second"  # type: ignore[list-item]


def test_threads_and_copies() -> None:
    template = pickle.loads(pickle.dumps(ChatTemplate(CHATML, "<s>", "</s>")))
    barrier = threading.Barrier(4)

    def many(name: int) -> bool:
        barrier.wait()
        texts = [
            template.render([{"role": "user", "content": f"{name} {i}"}]).text for i in range(50)
        ]
        return texts == [f"<|im_start|>user\n{name} {i}<|im_end|>\n" for i in range(50)]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(4)))
