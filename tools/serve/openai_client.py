#!/usr/bin/env python3
"""The official Python client `openai` against `int8 serve`: pip install openai; openai_client.py [--url URL] [--key KEY]
[--embeddings URL]. openai_client.mjs makes the same checks with the client for Node.

The server needs a model with a chat template, and one at --embeddings an encoder. Prints one line a check; the exit code is 1 if one
fails."""

import argparse
import json
import sys
from typing import Literal

import openai
import pydantic

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
parser.add_argument("--key", default="none")
parser.add_argument("--embeddings", help="/v1 of a server with an encoder")
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
           "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}}}
call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": "Oslo"})}}
talk = [{"role": "user", "content": "What is the weather in Oslo?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."}]
tools = client.chat.completions.create(model=model, messages=talk, tools=[weather], max_tokens=30, seed=1)
check("tools", tools.choices[0].finish_reason in ("stop", "length", "tool_calls"), tools.choices[0].finish_reason)

forced = client.chat.completions.create(model=model, messages=talk[:1], tools=[weather], tool_choice="required", max_tokens=120, seed=1)
called = forced.choices[0].message.tool_calls or []
check("tool_choice required", [c.function.name for c in called] == ["get_weather"]
      and set(json.loads(called[0].function.arguments)) >= {"city"}, called and called[0].function.arguments)


class Person(pydantic.BaseModel):
    # Bounds, since a small model goes on and on.
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)
    languages: list[Literal["Norwegian", "English", "Sami"]] = pydantic.Field(max_length=3)


person = [{"role": "user", "content": "Invent a person. Answer in JSON."}]
parsed = client.chat.completions.parse(model=model, messages=person, response_format=Person, max_tokens=300, temperature=0.2, seed=3)
choice = parsed.choices[0]
check("json_schema", choice.finish_reason == "stop" and isinstance(choice.message.parsed, Person), repr(choice.message.content[:80]))
with client.chat.completions.stream(model=model, messages=person, response_format=Person, max_tokens=300, temperature=0.2, seed=3) as stream:
    streamed = stream.get_final_completion().choices[0].message
check("json_schema stream", streamed.parsed == choice.message.parsed)
free = client.chat.completions.create(model=model, messages=person, response_format={"type": "json_object"}, max_tokens=200, seed=5)
content, reason = free.choices[0].message.content, free.choices[0].finish_reason
check("json_object", reason == "length" or isinstance(json.loads(content), dict), f"{reason} {content[:60]!r}")
short = client.chat.completions.create(model=model, messages=person, response_format={"type": "json_object"}, max_tokens=2, seed=5)
check("json_object cut short", short.choices[0].finish_reason == "length")
raw = client.chat.completions.with_raw_response.create(**settings, store=True)
check("an ignored field is named", raw.headers["x-ignored-fields"] == "store")

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
refused("a schema that is not supported", openai.BadRequestError, chat(response_format={
    "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "not": {"required": ["a"]}}}}))
refused("no messages", openai.BadRequestError, chat(messages=[]))
refused("too long", openai.BadRequestError, chat(messages=[{"role": "user", "content": "word " * 100_000}]))
refused("embeddings", openai.BadRequestError, lambda: client.embeddings.create(model=model, input="text"))
if arguments.embeddings:
    encoder = openai.OpenAI(base_url=arguments.embeddings, api_key=arguments.key, max_retries=0)
    name = encoder.models.list().data[0].id
    # The client asks for base 64 and decodes it.
    texts = [[2, 5, 9, 3], [2, 7, 3]]
    vectors = [one.embedding for one in encoder.embeddings.create(model=name, input=texts).data]
    plain = encoder.embeddings.create(model=name, input=texts, encoding_format="float").data
    check("embeddings.create", len(vectors) == 2 and all(abs(a - b) < 1e-6 for v, p in zip(vectors, plain) for a, b in zip(v, p.embedding)))
    refused("dimensions", openai.BadRequestError, lambda: encoder.embeddings.create(model=name, input=texts, dimensions=2))
sys.exit(failed > 0)
