// The page of `int8 serve` in a headless Chromium: npm install playwright-core; node page.mjs [--url URL] [--browser /usr/bin/chromium]
// [--pictures FOLDER]
//
// Prints one line a check; the exit code is 1 if one fails. The server needs a model with a chat template.
import { mkdirSync } from "node:fs";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values: given } = parseArgs({ options: {
  url: { type: "string", default: "http://127.0.0.1:8080/" },
  browser: { type: "string", default: "/usr/bin/chromium" },
  pictures: { type: "string" },
} });
let failed = 0;
const check = (name, passed, detail = "") => {
  failed += !passed;
  console.log(`${passed ? "ok  " : "FAIL"} ${name} ${detail}`);
};
const browser = await chromium.launch({ executablePath: given.browser, args: ["--no-sandbox"] });

async function open(width, height, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme });
  const page = await context.newPage();
  page.problems = [];
  page.hosts = new Set();
  page.bodies = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  page.on("request", (request) => {
    page.hosts.add(new URL(request.url()).host);
    if (request.method() === "POST") page.bodies.push(request.postDataJSON());
  });
  await page.goto(given.url);
  await page.waitForFunction(() => document.querySelector("#memory p"));
  return page;
}
const picture = async (page, name) => {
  if (!given.pictures) return;
  mkdirSync(given.pictures, { recursive: true });
  await page.screenshot({ path: `${given.pictures}/${name}.png` });
};
const last = (page) => page.locator("article.assistant").last();
const idle = (page) => page.waitForFunction(() => document.querySelector("#send").textContent === "Send", null, { timeout: 120_000 });

const page = await open(1200, 800, "light");
check("title", (await page.title()).length > 0, await page.title());
check("memory", /16-bit: .*now: /s.test((await page.locator("#memory").innerText())), (await page.locator("#memory").innerText()).replaceAll("\n", " "));
check("the message has the focus", await page.evaluate(() => document.activeElement.id) === "text");
await page.fill("#max_tokens", "40");
await page.fill("#seed", "1");
await page.fill("#system", "Be brief.");
await page.fill("#text", "Name three colours.");
await page.keyboard.press("Enter");
check("the button stops", (await page.locator("#send").innerText()) === "Stop");
// Text appears before the answer has ended.
await page.waitForFunction(() => document.querySelector("article.assistant span")?.textContent);
const early = await last(page).locator("span").innerText();
await idle(page);
const whole = await last(page).locator("span").innerText();
check("streams", whole.startsWith(early) && early.length < whole.length, `${early.length} of ${whole.length} characters at first`);
check("tokens/s", /tokens, [0-9.]+ tokens\/s/.test(await last(page).locator("footer").innerText()), await last(page).locator("footer").innerText());
check("the settings are sent", page.bodies[0].max_tokens === 40 && page.bodies[0].seed === 1 && page.bodies[0].messages[0].content === "Be brief.");
await page.waitForFunction(() => document.querySelectorAll("#outliers span").length > 4);
check("outlier columns by layer", /%/.test(await page.locator("#outliers").innerText()));
await picture(page, "light");

// Stop by the keyboard; a second question has the first in its conversation.
await page.fill("#max_tokens", "2000");
await page.fill("#text", "Count from one to five hundred.");
await page.keyboard.press("Shift+Enter");
check("Shift+Enter breaks the line", (await page.inputValue("#text")).endsWith("\n"));
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll("article.assistant").length === 2 && document.querySelectorAll("article.assistant span")[1].textContent);
await page.keyboard.press("Escape");
await idle(page);
check("Esc stops", (await last(page).locator("footer").innerText()) === "stopped");
check("the conversation goes on", page.bodies[1].messages.length === 4, page.bodies[1].messages.map((message) => message.role).join());
const running = async () => (await (await fetch(new URL("api/status", given.url))).json()).engine.running;
for (let tries = 0; tries < 40 && await running() > 0; tries++) await page.waitForTimeout(100);
check("the server has stopped, too", await running() === 0);

// "New" during an answer leaves nothing of it in the next conversation.
await page.fill("#text", "Tell a long tale.");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll("article.assistant span")[2]?.textContent);
await page.keyboard.press("Control+Shift+O");
check("begins anew", await page.locator("article").count() === 0);
await page.fill("#max_tokens", "5");
await page.fill("#text", "Hello.");
await page.click("#send");
await page.waitForFunction(() => document.querySelector("article footer")?.textContent);
check("nothing of the last conversation", page.bodies.at(-1).messages.length === 2, JSON.stringify(page.bodies.at(-1).messages));
// What a model writes is text.
await page.evaluate(() => show("assistant", "<img src=x onerror=window.bad=1>"));
check("text is no HTML", await page.evaluate(() => !window.bad && document.querySelectorAll("article img").length === 0));
await page.fill("#temperature", "9");
await page.fill("#text", "Hello.");
await page.keyboard.press("Enter");
await page.waitForSelector("article.error");
check("an error is shown", /temperature/.test(await page.locator("article.error").innerText()), await page.locator("article.error").innerText());
page.problems = page.problems.filter((problem) => !problem.includes("400 (Bad Request)"));
check("no errors on the console", page.problems.length === 0, page.problems.join("; "));
check("no request to another host", page.hosts.size === 1 && page.hosts.has(new URL(given.url).host), [...page.hosts].join());
check("no stray requests run", await running() === 0);

// Dark, and as narrow as a phone.
const phone = await open(375, 700, "dark");
const [red] = await phone.evaluate(() => getComputedStyle(document.documentElement).colorScheme && (getComputedStyle(document.body).color.match(/\d+/g)));
check("dark: light text", Number(red) > 128, red);
check("phone: nothing to scroll sideways", await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
check("phone: the settings are away", !(await phone.locator("#panel").isVisible()));
await phone.click("#panel-button");
check("phone: a button shows them", await phone.locator("#temperature").isVisible() && await phone.getAttribute("#panel-button", "aria-expanded") === "true");
await picture(phone, "phone-settings");
await phone.click("#panel-button");
await phone.fill("#text", "Hello.");
await phone.click("#send");
await phone.waitForFunction(() => document.querySelector("article footer")?.textContent, null, { timeout: 120_000 });
await picture(phone, "phone");
check("phone: it fits", await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.querySelector("form").getBoundingClientRect().bottom <= innerHeight + 1));
// All controls have a name and are reached with Tab.
const names = await phone.evaluate(() => [...document.querySelectorAll("button, input, textarea")].every((control) =>
  control.textContent || control.labels?.length || control.getAttribute("aria-label")));
check("controls have names", names);
await browser.close();
process.exit(failed > 0 ? 1 : 0);
