// The official Node client `openai` against `int8 serve`, as openai_client.py with the Python one:
// npm install openai; node openai_client.mjs [--url URL] [--key KEY] [--embeddings URL]
//
// The server needs a model with a chat template, and one at --embeddings an encoder. Prints one line a check; the exit code is 1 if one
// fails.
import { parseArgs } from "node:util";
import OpenAI from "openai";

const { values: given } = parseArgs({ options: {
  url: { type: "string", default: "http://127.0.0.1:8080/v1" },
  key: { type: "string", default: "none" },
  embeddings: { type: "string" },
} });
const client = new OpenAI({ baseURL: given.url, apiKey: given.key, maxRetries: 0 });
let failed = 0;
const check = (name, passed, detail = "") => {
  failed += !passed;
  console.log(`${passed ? "ok  " : "FAIL"} ${name} ${detail}`);
};
async function refused(name, error, call) {
  try {
    await call();
    check(name, false, "was not refused");
  } catch (found) {
    check(name, found instanceof error, `${found.constructor.name}: ${found.message}`);
  }
}

const model = (await client.models.list()).data[0].id;
check("models.list", Boolean(model), model);
check("models.retrieve", (await client.models.retrieve(model)).id === model);
const settings = { model, messages: [{ role: "user", content: "Name the colours of the rainbow." }], max_tokens: 40, seed: 7 };
const chat = (more = {}) => client.chat.completions.create({ ...settings, ...more });

const whole = await chat();
const text = whole.choices[0].message.content;
check("chat", text && whole.usage.completion_tokens <= 40, JSON.stringify(text.slice(0, 60)));
check("chat: the same seed", (await chat()).choices[0].message.content === text);
let streamed = "", usage = null;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
check("chat stream", streamed === text && usage.total_tokens === whole.usage.total_tokens);
const probable = await chat({ logprobs: true, top_logprobs: 3 });
const tokens = probable.choices[0].logprobs.content;
check("logprobs", tokens.length === probable.usage.completion_tokens && tokens.every((token) => token.top_logprobs.length === 3));
check("n", new Set((await chat({ n: 3 })).choices.map((choice) => choice.message.content)).size > 1);

const weather = { type: "function", function: { name: "get_weather", description: "The weather of a city", parameters:
  { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"], additionalProperties: false } } };
const ask = { role: "user", content: "What is the weather in Oslo?" };
const call = { id: "1", type: "function", function: { name: "get_weather", arguments: JSON.stringify({ city: "Oslo" }) } };
const talk = [ask, { role: "assistant", content: null, tool_calls: [call] }, { role: "tool", tool_call_id: "1", content: "Rain." }];
const told = await chat({ messages: talk, tools: [weather], max_tokens: 30 });
check("tools", ["stop", "length", "tool_calls"].includes(told.choices[0].finish_reason), told.choices[0].finish_reason);
const forced = await chat({ messages: [ask], tools: [weather], max_tokens: 120,
  tool_choice: { type: "function", function: { name: "get_weather" } } });
const called = forced.choices[0].message.tool_calls ?? [];
check("tool_choice of a function", called.length === 1 && "city" in JSON.parse(called[0].function.arguments), called[0]?.function.arguments);

const schema = { type: "object", properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 150 },
  // Bounds, since a small model goes on and on.
  languages: { type: "array", items: { enum: ["Norwegian", "English", "Sami"] }, maxItems: 3 } },
  required: ["name", "age", "languages"], additionalProperties: false };
const person = { messages: [{ role: "user", content: "Invent a person. Answer in JSON." }], max_tokens: 300, temperature: 0.2, seed: 3,
  response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema } } };
const parsed = await client.chat.completions.parse({ ...settings, ...person });
const found = JSON.parse(parsed.choices[0].message.content);
check("json_schema", parsed.choices[0].finish_reason === "stop" && Number.isInteger(found.age) && Array.isArray(found.languages), JSON.stringify(found).slice(0, 80));
check("json_schema: keys in the schema's order", Object.keys(found).join() === "name,age,languages");
const final = await client.chat.completions.stream({ ...settings, ...person }).finalContent();
check("json_schema stream", final === parsed.choices[0].message.content);
const free = (await chat({ ...person, response_format: { type: "json_object" }, max_tokens: 200 })).choices[0];
check("json_object", free.finish_reason === "length" || typeof JSON.parse(free.message.content) === "object", free.finish_reason);

const done = await client.completions.create({ model, prompt: "One, two, three,", max_tokens: 8, temperature: 0, logprobs: 2 });
check("completions", done.choices[0].logprobs.tokens.length === done.usage.completion_tokens, JSON.stringify(done.choices[0].text));
const left = await chat({ stream: true });
for await (const chunk of left) if (chunk.choices[0]?.delta.content) break;
check("a stream that is closed early", (await client.models.list()).data[0].id === model);
const controller = new AbortController();
const aborted = client.chat.completions.create({ ...settings, max_tokens: 400 }, { signal: controller.signal });
controller.abort();
await refused("an answer that is aborted", OpenAI.APIUserAbortError, () => aborted);

await refused("wrong model", OpenAI.NotFoundError, () => chat({ model: "gpt-4" }));
await refused("wrong temperature", OpenAI.BadRequestError, () => chat({ temperature: 9 }));
await refused("no messages", OpenAI.BadRequestError, () => chat({ messages: [] }));
await refused("too long", OpenAI.BadRequestError, () => chat({ messages: [{ role: "user", content: "word ".repeat(100_000) }] }));
await refused("a schema that is not supported", OpenAI.BadRequestError, () => chat({ response_format:
  { type: "json_schema", json_schema: { name: "x", schema: { type: "object", not: { required: ["a"] } } } } }));
await refused("embeddings", OpenAI.BadRequestError, () => client.embeddings.create({ model, input: "text" }));
if (given.embeddings) {
  const encoder = new OpenAI({ baseURL: given.embeddings, apiKey: given.key, maxRetries: 0 });
  const name = (await encoder.models.list()).data[0].id, input = [[2, 5, 9, 3], [2, 7, 3]];
  // The client asks for base 64 and decodes it.
  const vectors = (await encoder.embeddings.create({ model: name, input })).data.map((one) => one.embedding);
  const plain = (await encoder.embeddings.create({ model: name, input, encoding_format: "float" })).data.map((one) => one.embedding);
  check("embeddings.create", vectors.length === 2 && vectors.every((vector, at) => vector.every((value, i) => Math.abs(value - plain[at][i]) < 1e-6)));
  await refused("dimensions", OpenAI.BadRequestError, () => encoder.embeddings.create({ model: name, input, dimensions: 2 }));
}
process.exit(failed > 0 ? 1 : 0);
