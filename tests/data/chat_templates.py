"""Chat templates of the usual kinds, written for the tests: with the assistant's parts marked."""

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# As SmolLM2: a system message of its own where there is none.
DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}{%- endif %}\n" + CHATML
)

# As Mistral: no special token in front of an answer, which begins with a space.
INST = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- '[SYSTEM]' + message.content + '[/SYSTEM]' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- endif %}
{%- endfor %}
"""

# As Llama 3: role headers, and tools in the first message.
HEADERS = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + (tools | tojson) + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {%- if message.tool_calls is defined %}
                {%- for call in message.tool_calls %}{{- call | tojson }}{% endfor %}
            {%- else %}
                {{- message.content | trim }}
            {%- endif %}
            {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TAGGED = {"chatml": CHATML, "default system": DEFAULT_SYSTEM, "inst": INST, "headers": HEADERS}

# What earlier answers thought is not shown again: such a template does not write left to right.
FORGETFUL = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and not loop.last %}
        {{- message.content.split('</think>')[-1] }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def untagged(template: str) -> str:
    """The template without its marks."""
    return template.replace("{%- generation %}", "{%- if true %}").replace(
        "{% endgeneration %}", "{% endif %}"
    ).replace("{%- endgeneration %}", "{%- endif %}")  # fmt: skip
