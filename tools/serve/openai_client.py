#!/usr/bin/env python3
"""The official `openai` client against `int8 serve`: pip install openai; openai_client.py [--url URL] [--key KEY].

The server needs a model with a chat template. Prints one line a check; the exit code is 1 if one fails."""

import argparse
import json
import sys

import openai

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
parser.add_argument("--key", default="none")
arguments = parser.parse_args()
client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0)
failed = 0


def check(name, passed, detail=""):
    global failed
    failed += not passed
    print(f"{'ok  ' if passed else 'FAIL'} {name} {detail}")


model = client.models.list().data[0].id
check("models.list", bool(model), model)
check("models.retrieve", client.models.retrieve(model).id == model)
messages = [{"role": "user", "content": "Name the colours of the rainbow."}]
settings = dict(model=model, messages=messages, max_tokens=40, seed=7)

whole = client.chat.completions.create(**settings)
text = whole.choices[0].message.content
check("chat", bool(text) and whole.usage.completion_tokens <= 40, repr(text[:60]))
again = client.chat.completions.create(**settings)
check("chat: the same seed", again.choices[0].message.content == text)

chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check("chat stream", streamed == text and chunks[-1].usage.total_tokens == whole.usage.total_tokens)

probable = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3)
tokens = probable.choices[0].logprobs.content
check("logprobs", len(tokens) == probable.usage.completion_tokens and all(len(t.top_logprobs) == 3 for t in tokens))
check("n", len({choice.message.content for choice in client.chat.completions.create(**settings, n=3).choices}) > 1)

weather = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": "Oslo"})}}
talk = [{"role": "user", "content": "What is the weather in Oslo?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."}]
tools = client.chat.completions.create(model=model, messages=talk, tools=[weather], max_tokens=30, seed=1)
check("tools", tools.choices[0].finish_reason in ("stop", "length", "tool_calls"), tools.choices[0].finish_reason)

done = client.completions.create(model=model, prompt="One, two, three,", max_tokens=8, temperature=0, logprobs=2)
check("completions", len(done.choices[0].logprobs.tokens) == done.usage.completion_tokens, repr(done.choices[0].text))
with client.chat.completions.create(**settings, stream=True) as stream:
    for _, chunk in zip(range(3), stream):
        pass
check("a stream that is closed early", client.models.list().data[0].id == model)


def refused(name, error, call):
    try:
        call()
        check(name, False, "was not refused")
    except error as found:
        check(name, True, f"{type(found).__name__}: {found.body and found.body.get('message')}")


def chat(**more):
    return lambda: client.chat.completions.create(**{**settings, **more})


refused("wrong model", openai.NotFoundError, chat(model="gpt-4"))
refused("wrong temperature", openai.BadRequestError, chat(temperature=9))
refused("json_object", openai.BadRequestError, chat(response_format={"type": "json_object"}))
refused("no messages", openai.BadRequestError, chat(messages=[]))
refused("too long", openai.BadRequestError, chat(messages=[{"role": "user", "content": "word " * 100_000}]))
refused("embeddings", openai.BadRequestError, lambda: client.embeddings.create(model=model, input="text"))
sys.exit(failed > 0)
