#!/usr/bin/env python3
"""Rate of a server with OpenAI's completions API: C clients at once, each with prompts of random ids, one request after the other.

rate.py [--url http://127.0.0.1:8080] [--clients 1,8,32,128] [--prompt 128] [--answer 128] [--rounds 3] [--vocabulary 30000]

A line a number of clients: tokens a second of all answers, time to the first token and between tokens (p50, p99, ms); JSON with --json."""

import argparse
import asyncio
import json
import random
import time
import urllib.parse


def share(values, part):
    return 1000 * sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def request(address, body):
    """Times of the pieces of one answer, after the request was sent."""
    reader, writer = await asyncio.open_connection(*address)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    begin, times = time.perf_counter(), []
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{status!r} {await reader.read()}")
    async for line in reader:
        if line.startswith(b"data: {"):
            times.append(time.perf_counter() - begin)
    writer.close()
    return times


async def measure(address, clients, options):
    draw = random.Random(clients)

    async def client():
        answers = []
        for _ in range(options.rounds):
            ids = [draw.randrange(options.vocabulary) for _ in range(options.prompt)]
            body = {"prompt": ids, "max_tokens": options.answer, "temperature": 0, "ignore_eos": True, "stream": True}
            answers.append(await request(address, json.dumps(body).encode()))
        return answers

    begin = time.perf_counter()
    answers = sum(await asyncio.gather(*[client() for _ in range(clients)]), [])
    seconds = time.perf_counter() - begin
    between = [b - a for times in answers for a, b in zip(times, times[1:])]
    first = [times[0] for times in answers]
    return {"clients": clients, "requests": len(answers), "tokens_per_second": len(answers) * options.answer / seconds,
            "first_ms": [share(first, 0.5), share(first, 0.99)], "between_ms": [share(between, 0.5), share(between, 0.99)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=30000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    url = urllib.parse.urlsplit(options.url)
    address = (url.hostname, url.port or 80)
    for clients in map(int, options.clients.split(",")):
        found = asyncio.run(measure(address, clients, options))
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        (first, late), (between, slow) = found["first_ms"], found["between_ms"]
        print(f"{clients:>4} clients {found['tokens_per_second']:>8.0f} tok/s, first {first:.0f} / {late:.0f} ms, "
              f"between {between:.2f} / {slow:.2f} ms", flush=True)


main()
