#!/usr/bin/env python3
"""Conversations rendered by transformers with chat templates of every style: int8-nn/tests/data/chat.json.

usage: make_chat_goldens.py

The templates are written for this test, with the constructs that chat models use. Makes its own environment in
~/.cache/int8-tools (transformers, torch).
"""
import json
import os
import pathlib
import subprocess
import sys
import venv

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"
NEEDS = ["torch==2.15.0", "transformers==5.23.0", "safetensors", "jinja2"]
OUT = pathlib.Path(__file__).resolve().parent.parent / "int8-nn/tests/data/chat.json"

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "tags": """{% if messages[0]['role'] != 'system' %}{{ '<|begin|>system
Be brief.<|end|>
' }}{% endif %}{% for message in messages %}
{{- '<|begin|>' + message['role'] + '
' + message['content'] + '<|end|>' + '
' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant
' }}{% endif %}""",
    "brackets": """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<S>>\\n' + messages[0]['content'].strip() + '\\n<</S>>\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system, rest = '', messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[Q] ' + (system if loop.first else '') + message['content'].strip() + ' [/Q]' -}}
    {%- else -%}
        {{- ' ' ~ message.content | trim ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}""",
    "turns": """{{ bos_token }}
{% if messages[0].role == 'system' %}
    {% set first_user_prefix = messages[0].content + '\\n\\n' %}
    {% set loop_messages = messages[1:] %}
{% else %}
    {% set first_user_prefix = "" %}
    {% set loop_messages = messages %}
{% endif %}
{% for message in loop_messages %}
    {% if message.role == 'assistant' %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message.role %}
    {% endif %}
    {{ '<turn>' ~ role ~ '\\n' ~ (first_user_prefix if loop.first else '') }}
    {%- if message.content is string -%}
        {{ message.content | trim }}
    {%- elif message.content is iterable -%}
        {% for part in message.content %}{{ part.text }}{% endfor %}
    {%- endif -%}
    {{ '<end>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<turn>model\\n' }}
{% endif %}""",
    "thinking": """{%- macro said(role, text) -%}
<|{{ role }}|>{{ text }}<|stop|>
{% endmacro -%}
{%- set ns = namespace(last_user=-1, seen=0) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages | length - 1) - loop.index0 -%}
    {%- if message.role == 'user' and not message.content.startswith('<tool>') -%}
        {%- set ns.last_user = index -%}
        {%- break -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}{%- continue -%}{%- endif -%}
    {%- set text = message.content -%}
    {%- if message.role == 'assistant' and '</think>' in text and loop.index0 < ns.last_user -%}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {%- set ns.seen = ns.seen + 1 -%}
    {{- said(message.role, text) -}}
{%- endfor -%}
{%- if tools is not none and tools -%}{{ tools | tojson }}{%- endif -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think></think>' -}}{%- endif -%}
{%- endif -%}
{#- counted -#}
 [{{ ns.seen }} of {{ messages | length }}]""",
    "json": """{% for message in messages %}
{{ {"role": message.role.upper(), "content": message.content, "place": loop.index, "last": loop.last} | tojson }}
{% endfor %}
{{ messages | map(attribute='role') | list | tojson(indent=2) }}
{% if strftime_now is defined %}dated{% endif %}

{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ ' ' }}{{ pad_token }}|{{ eos_token }}
""",
    "trained": """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- else %}
{{ '### ' + message['role'].title() + ':\\n' + message['content'].replace('\\t', ' ').rstrip() }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' %}
### Answer:
{% endif %}""",
}

CHATS = {
    "one": [("user", "Why is the sky blue?")],
    "system": [("system", "  You know <everything> & \"more\". "), ("user", "Why?\tTell me.  ")],
    "long": [("system", "Be kind."), ("user", " Hello! "), ("assistant", "<think>\nhm\n</think>\n\nHello, ü 你好 "),
             ("user", "And 'now'?\n")],
    "answered": [("user", "a"), ("assistant", "b")],
    "twice": [("user", "a"), ("user", "b")],
    "tool": [("user", "a"), ("tool", "{}"), ("assistant", "b"), ("user", "c")],
}


def in_environment():
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def main():
    from transformers.utils.chat_template_utils import render_jinja_template

    cases = []
    for name, template in TEMPLATES.items():
        # The tests' clock is absent, that of transformers is not.
        seen = template.replace("strftime_now is defined", "false")
        for chat, messages in CHATS.items():
            for prompt in (True, False):
                messages_ = [{"role": role, "content": content} for role, content in messages]
                case = {"name": f"{name}, {chat}", "template": name, "messages": messages_, "add_generation_prompt": prompt}
                try:
                    rendered, _ = render_jinja_template([messages_], chat_template=seen, add_generation_prompt=prompt,
                                                        **SPECIAL)
                    case["expected"] = rendered[0]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    data = {"special_tokens": SPECIAL, "templates": TEMPLATES, "cases": cases}
    OUT.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(cases)} cases, {sum('error' in case for case in cases)} of them errors")


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main()
