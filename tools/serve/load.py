#!/usr/bin/env python3
"""Load on `int8 serve`: clients with prompts and answers of mixed lengths, a fifth of which leave early, a twentieth of which send
malformed requests, and some of which read slowly. Every whole answer is compared with the one that the same request gets alone.

load.py [--url http://127.0.0.1:8080] [--clients 32] [--seconds 180] [--pid SERVER]
load.py --turns 3    tokens/s of one request after the other, and of 8 and 32 clients, in turns on the same requests"""

import argparse
import http.client
import json
import random
import threading
import time
import urllib.parse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8080")
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--seconds", type=float, default=180)
parser.add_argument("--pid", type=int, help="of the server: its memory is recorded")
parser.add_argument("--turns", type=int, help="measure throughput instead")
arguments = parser.parse_args()
address = urllib.parse.urlsplit(arguments.url).netloc

WORDS = "the river ran past houses where people had lived for years and nobody knew why it was so quiet".split()
CASES = []
for seed in range(24):
    draw = random.Random(seed)
    prompt = " ".join(draw.choice(WORDS) for _ in range(draw.choice([2, 10, 40, 150])))
    CASES.append({"prompt": prompt, "max_tokens": draw.choice([4, 16, 48, 96]), "seed": seed,
                  "temperature": draw.choice([0, 0.7, 1.0])})
# Every sixth answer is JSON of a schema.
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
          "required": ["name", "age"], "additionalProperties": False}
for case in CASES[::6]:
    case["response_format"] = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
MALFORMED = [b"{", b"[]", b"\xff\xfe", b'{"prompt": 1}', b'{"prompt": "x", "temperature": "hot"}', b"[" * 5000,
             b'{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}, "type": "object"}}}}']


def send(body, stream):
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def whole(case):
    connection, response = send(json.dumps(case).encode(), False)
    body = json.loads(response.read())
    connection.close()
    return response.status, body


def streamed(case, draw, leave):
    connection, response = send(json.dumps({**case, "stream": True}).encode(), True)
    if response.status != 200:
        return response.status, None
    slow = draw.random() < 0.1
    text, pieces = "", 0
    for line in response:
        if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return 500, chunk
        text += "".join(choice["text"] for choice in chunk["choices"])
        pieces += 1
        if leave and pieces == 2:
            connection.sock and connection.sock.close()
            response.close()
            return 0, None
        if slow:
            time.sleep(0.05)
    connection.close()
    return 200, text


def rss():
    if not arguments.pid:
        return 0
    with open(f"/proc/{arguments.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def throughput(clients):
    """Tokens/s of all cases twice over."""
    work, lock, tokens = list(CASES) * 2, threading.Lock(), [0]

    def one():
        while True:
            with lock:
                if not work:
                    return
                case = work.pop()
            status, body = whole({**case, "ignore_eos": True} if "response_format" not in case else case)
            assert status == 200, body
            with lock:
                tokens[0] += body["usage"]["completion_tokens"]

    begin = time.time()
    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tokens[0] / (time.time() - begin)


if arguments.turns:
    rates = {clients: [] for clients in (1, 8, 32)}
    for _ in range(arguments.turns):
        for clients, found in rates.items():
            found.append(round(throughput(clients), 1))
    middle = {clients: sorted(found)[len(found) // 2] for clients, found in rates.items()}
    print(json.dumps({"tokens_per_second": rates, "times_sequential": {n: round(middle[n] / middle[1], 2) for n in (8, 32)}}))
    raise SystemExit

begin = time.time()
expected, tokens = [], 0
for case in CASES:
    status, body = whole(case)
    assert status == 200, body
    expected.append(body["choices"][0]["text"])
    tokens += body["usage"]["completion_tokens"]
sequential = tokens / (time.time() - begin)
counts = {"whole": 0, "left": 0, "malformed": 0, "busy": 0, "wrong": 0, "errors": 0}
lock, memory, end, produced = threading.Lock(), [rss()], time.time() + arguments.seconds, [0]


def count(name):
    with lock:
        counts[name] += 1


def client(number):
    draw = random.Random(1000 + number)
    while time.time() < end:
        kind = draw.random()
        try:
            if kind < 0.05:
                connection, response = send(draw.choice(MALFORMED), False)
                response.read()
                connection.close()
                count("malformed" if response.status == 400 else "errors")
                continue
            at = draw.randrange(len(CASES))
            if draw.random() < 0.5 and kind >= 0.25:
                status, body = whole(CASES[at])
                text = body["choices"][0]["text"] if status == 200 else None
            else:
                status, text = streamed(CASES[at], draw, kind < 0.25)
            if status == 0:
                count("left")
            elif status == 429:
                count("busy")
                time.sleep(1)
            elif status != 200:
                count("errors")
            else:
                count("whole" if text == expected[at] else "wrong")
        except Exception as error:
            print(type(error).__name__, error)
            count("errors")


threads = [threading.Thread(target=client, args=(number,)) for number in range(arguments.clients)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    time.sleep(5)
    memory.append(rss())
for thread in threads:
    thread.join()
connection = http.client.HTTPConnection(address)
connection.request("GET", "/metrics")
metrics = dict(line.rsplit(" ", 1) for line in connection.getresponse().read().decode().splitlines() if line[0] != "#")
names = ["requests_running", "requests_waiting", "new_tokens_total", "cached_tokens_total", "preemptions_total", "requests_failed_total"]
seconds = time.time() - (end - arguments.seconds)
print(json.dumps({
    "clients": arguments.clients, "seconds": round(seconds), **counts,
    "tokens_per_second_alone": round(sequential, 1),
    "tokens_per_second_together": round((float(metrics["int8_new_tokens_total"]) - tokens) / seconds, 1),
    "memory_mib_each_30_s": [round(value) for value in memory[::6]],
    **{name: float(metrics["int8_" + name]) for name in names},
}, indent=1))
raise SystemExit(counts["wrong"] + counts["errors"] > 0)
