// The player page in headless Chromium against a gateway that has a stream with pictures in it.
//
//     node player.mjs http://127.0.0.1:8080 STREAM [--token TOKEN] [--recorded-only] [--screenshot FILE]
//
// STREAM is live, in a format that Chromium plays (H.264), and has at least 30 seconds recorded; --recorded-only leaves out live.
// With a token it signs in through the form first. Prints one line of JSON with what it saw; exits 1 at the first check that
// fails.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { BOUND_MS, listen, open } from "./browser.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { token: { type: "string" }, "recorded-only": { type: "boolean" }, screenshot: { type: "string" } },
});
const [base = "http://127.0.0.1:8080", stream = "cam-1"] = positionals;
/** The moment shown after a jump may be this far from the one asked for. */
const JUMP_MS_MAX = 2000;
/** A jump goes so far back from the newest picture, or to the middle of what there is when that is less. */
const JUMP_BACK_MS = 30_000;
/** Who clicks nearer than 5 seconds to the newest picture that the page knows of, which it asks for now and then, means live. */
const LIVE_MS = 16_000;
const CLIP_MS = 6000;
const DAY_MS = 86_400_000;

const saw = { base, stream };
const complaints = [];
let opened = null;
let step = "start";
try {
  opened = await open();
  const { page } = opened;
  if (values.token) await check("sign in", () => signIn(page));
  await listen(page, complain);
  await check("load", () => load(page));
  await check("list", () => listed(page));
  if (!values["recorded-only"]) await check("live", () => live(page));
  await check("timeline", () => timeline(page));
  await check("jump", () => jump(page));
  await check("clip", () => clip(page));
  if (values.screenshot) await page.screenshot({ path: values.screenshot });
  await check("unknown stream", () => unknown(page));
  await check("quiet", async () => assert.deepEqual(complaints, [], "errors in the console or against the policy"));
  console.log(JSON.stringify({ ok: true, ...saw }));
} catch (error) {
  console.log(JSON.stringify({ ok: false, step, error: error.message, complaints, ...saw }));
  process.exitCode = 1;
} finally {
  await opened?.close();
}

async function check(name, act) {
  step = name;
  const began = Date.now();
  await act();
  (saw.took_ms ??= {})[name] = Date.now() - began;
}

/** A gateway without a decoder may refuse the small picture at the pointer, once. */
function complain(text) {
  if (!/\b501\b.*\/image\.jpg/.test(text)) complaints.push(text);
}

async function signIn(page) {
  await page.goto(`${base}/video`);
  const field = await page.waitForSelector("#token", { visible: true });
  await field.type("not the token at all");
  await page.click("#sign-in button");
  await page.waitForFunction(() => document.querySelector("#sign-in .problem").textContent.includes("not the token"));
  await field.evaluate((input) => (input.value = ""));
  await field.type(values.token);
  await page.click("#sign-in button");
  await page.waitForSelector("#app", { visible: true });
}

async function load(page) {
  await page.goto("about:blank");
  const answer = await page.goto(`${base}/video#${encodeURIComponent(stream)}`, { waitUntil: "load" });
  assert.equal(answer.status(), 200);
  const policy = answer.headers()["content-security-policy"] ?? "";
  for (const rule of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]) {
    assert.ok(policy.includes(rule), `the policy lacks ${rule}: ${policy}`);
  }
  assert.ok(!policy.includes("unsafe"), policy);
}

async function listed(page) {
  await page.waitForSelector("#streams button");
  saw.streams = await page.$$eval("#streams .name", (names) => names.map((name) => name.textContent));
  assert.ok(saw.streams.includes(stream), `${stream} is not among ${saw.streams}`);
  assert.equal(await page.$eval('#streams [aria-current="true"] .name', (name) => name.textContent), stream);
}

/** What is on the screen, once it plays. */
async function playing(page) {
  await page.waitForFunction(() => {
    const video = document.querySelector("#video");
    return video.readyState >= 3 && video.videoWidth > 0 && !video.paused && !video.seeking;
  });
  return state(page);
}

function state(page) {
  return page.evaluate(() => {
    const video = document.querySelector("#video");
    const shown = Date.parse(document.querySelector("#time").dateTime);
    return { position: video.currentTime, width: video.videoWidth, height: video.videoHeight, ready: video.readyState, shown };
  });
}

/** Position and moment shown both go on. */
async function goesOn(page, before) {
  await page.waitForFunction((from) => document.querySelector("#video").currentTime > from + 1.5, {}, before.position);
  const after = await state(page);
  assert.ok(after.ready >= 3, `readyState ${after.ready}`);
  assert.ok(after.shown > before.shown, "the moment shown stands still");
  return after;
}

async function live(page) {
  const after = await goesOn(page, await playing(page));
  await page.waitForFunction(() => /\d s$/.test(document.querySelector("#latency").textContent));
  saw.latency_s = Number.parseFloat(await page.$eval("#latency", (latency) => latency.textContent));
  Object.assign(saw, { width: after.width, height: after.height });
  assert.equal(await page.$eval("#live", (button) => button.getAttribute("aria-pressed")), "true");
}

async function timeline(page) {
  const about = await facts(page);
  saw.ranges = about.ranges.length;
  assert.ok(saw.ranges >= 1, "no recorded range");
  assert.ok(about.ranges.every(([start, end], index) => start < end && (index === 0 || about.ranges[index - 1][1] <= start)));
  // The bars are there: some pixel in the middle of the canvas has their colour.
  await page.waitForFunction(() => {
    const canvas = document.querySelector("#timeline canvas");
    const paper = canvas.getContext("2d");
    paper.fillStyle = getComputedStyle(canvas).getPropertyValue("--recorded").trim();
    const rgb = paper.fillStyle.match(/\w\w/g).map((two) => Number.parseInt(two, 16));
    const row = paper.getImageData(0, Math.round(canvas.height * 0.42), canvas.width, 1).data;
    for (let at = 0; at < row.length; at += 4) if (rgb.every((value, k) => Math.abs(value - row[at + k]) < 4)) return true;
    return false;
  });
  // Zooming out and in again by the buttons.
  await page.click('#spans [data-span="86400000"]');
  await page.waitForSelector('#spans [data-span="86400000"][aria-pressed="true"]');
  await page.click('#spans [data-span="600000"]');
  await page.waitForSelector('#spans [data-span="600000"][aria-pressed="true"]');
}

/** What the gateway says about the stream, asked as the page asks. */
function facts(page) {
  return page.evaluate(async (name) => {
    const { streams } = await (await fetch("/video/streams")).json();
    const about = streams.find((stream) => stream.name === name);
    const answer = await fetch(`/video/${encodeURIComponent(name)}/timeline?from=${about.oldest_ms}&to=${about.newest_ms + 1}`);
    return { ...about, ...(await answer.json()) };
  }, stream);
}

async function jump(page) {
  const { ranges, newest_ms } = await facts(page);
  const [start, end] = ranges.at(-1);
  const target = Math.round(Math.max(start + (end - start) / 2, newest_ms - JUMP_BACK_MS) / 1000) * 1000;
  await page.$eval("#jump-to", (input, ms) => {
    const local = new Date(ms - new Date(ms).getTimezoneOffset() * 60_000);
    input.value = local.toISOString().slice(0, 19);
  }, target);
  const asked = Date.now();
  await page.click("#jump button");
  await page.waitForFunction(() => document.querySelector("#live").getAttribute("aria-pressed") === "false");
  // The time shown is set a few times a second, and until then is that of the live picture. The assertion says how far it is off.
  await page
    .waitForFunction((ms, most) => Math.abs(Date.parse(document.querySelector("#time").dateTime) - ms) < most, { timeout: 5000 }, target, JUMP_MS_MAX)
    .catch(() => {});
  const before = await playing(page);
  saw.jump_off_ms = before.shown - target;
  saw.jump_took_ms = Date.now() - asked;
  const played = Math.max(0, Date.now() - asked);
  assert.ok(saw.jump_off_ms > -JUMP_MS_MAX && saw.jump_off_ms < JUMP_MS_MAX + played, `${saw.jump_off_ms} ms off`);
  assert.ok(before.width > 0);
  await goesOn(page, before);
  await pauseHolds(page);
  await clickJumps(page);
}

async function pauseHolds(page) {
  await page.click("#play");
  await page.waitForFunction(() => document.querySelector("#video").paused);
  await sleep(500); // the time shown is set a few times a second
  const held = await state(page);
  await sleep(700);
  assert.equal((await state(page)).shown, held.shown, "a pause stands still");
  await page.click("#play");
  await goesOn(page, await playing(page));
}

/** A click on the timeline plays from the moment that is there: from a pause, which nothing else ends, and while it plays. */
async function clickJumps(page) {
  await page.click("#play");
  await page.waitForFunction(() => document.querySelector("#video").paused);
  const { ranges, newest_ms } = await facts(page);
  const [start, end] = ranges.at(-1);
  const last = Math.min(end, newest_ms) - LIVE_MS;
  assert.ok(last - start > 8000, `${last - start} ms are too few to jump in`);
  saw.clicks_off_ms = [];
  for (const target of [start + 2000, last, start + (last - start) / 2]) {
    const { x, y } = await placeOf(page, target);
    const before = (await state(page)).shown;
    assert.ok(Math.abs(before - target) > JUMP_MS_MAX, "this jump would show nothing");
    const clicked = Date.now();
    await page.mouse.click(x, y);
    await page.waitForFunction((was) => Math.abs(Date.parse(document.querySelector("#time").dateTime) - was) > 1000, {}, before);
    const off = (await playing(page)).shown - target;
    saw.clicks_off_ms.push(Math.round(off));
    assert.ok(off > -JUMP_MS_MAX && off < JUMP_MS_MAX + Date.now() - clicked, `a click leads ${off} ms beside the moment clicked`);
  }
  await goesOn(page, await playing(page));
}

/** Where on the timeline a moment is, by what the timeline says of two of its places. */
async function placeOf(page, ms) {
  const box = await (await page.$("#timeline")).boundingBox();
  const y = box.y + box.height * 0.4;
  const span = await page.$eval('#spans [aria-pressed="true"]', (button) => Number(button.dataset.span));
  const told = async (share) => {
    await page.mouse.move(box.x + box.width * share, y);
    await page.waitForSelector("#timeline .tip", { visible: true });
    const text = await page.$eval("#timeline .tip span", (tip) => tip.textContent);
    const [hours, minutes, seconds] = /(\d+):(\d+):(\d+)/.exec(text).slice(1).map(Number);
    return ((hours * 60 + minutes) * 60 + seconds) * 1000;
  };
  const [near, far] = [await told(0.25), await told(0.75)];
  // Midnight may lie between the two.
  const since = (a, b) => ((b - a + 1.5 * DAY_MS) % DAY_MS) - DAY_MS / 2;
  assert.ok(Math.abs(since(near, far) - span / 2) <= 1000, `half of ${span} ms reaches from ${near} to ${far}`);
  const moment = await page.evaluate((ms) => ms - new Date(ms).setHours(0, 0, 0, 0), ms);
  // What is told is cut to the second.
  const share = 0.25 + (since(near, moment) - 500) / span;
  assert.ok(share > 0 && share < 1, `the moment is not on the timeline: ${share}`);
  return { x: box.x + box.width * share, y };
}

async function clip(page) {
  await page.click("#cut");
  await page.waitForSelector("#download", { visible: true });
  const { ranges } = await facts(page);
  const [start, end] = ranges.at(-1);
  const from = Math.ceil(Math.max(start, end - 12_000) / 1000) * 1000;
  await page.evaluate(([from, to]) => {
    const text = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
    for (const [id, ms] of [["clip-from", from], ["clip-to", to]]) {
      const input = document.getElementById(id);
      input.value = text(ms);
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
  }, [from, from + CLIP_MS]);
  const asked = new URL(await page.$eval("#download", (link) => link.href)).searchParams;
  assert.deepEqual([Number(asked.get("from")), Number(asked.get("to"))], [from, from + CLIP_MS], "the clip that is chosen is another");
  const downloads = path.join(opened.folder, "downloads");
  const session = await opened.browser.target().createCDPSession();
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads, eventsEnabled: true });
  const done = new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error("no download was finished")), BOUND_MS);
    session.on("Browser.downloadProgress", ({ state }) => {
      if (state === "completed") resolve(clearTimeout(late));
      if (state === "canceled") reject(new Error("the download was cancelled"));
    });
  });
  await page.click("#download");
  await done;
  const [name] = await fs.readdir(downloads);
  const bytes = await fs.readFile(path.join(downloads, name));
  saw.clip = { name, bytes: bytes.length };
  assert.equal(bytes.toString("latin1", 4, 8), "ftyp", "the clip is no MP4");
  assert.ok(bytes.includes("moof") || bytes.includes("moov"));
  // Whole fragments of a second: the first and the last may reach over what was asked for.
  const probe = ["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", path.join(downloads, name)];
  saw.clip.duration_s = Number.parseFloat(execFileSync("ffprobe", probe, { encoding: "utf8" }));
  const over_ms = saw.clip.duration_s * 1000 - CLIP_MS;
  assert.ok(over_ms > -100 && over_ms < 2100, `the clip has ${saw.clip.duration_s} s`);
}

async function unknown(page) {
  const name = "there-is-no-such-stream";
  await page.goto(`${base}/video#${name}`);
  await page.reload();
  await page.waitForFunction((name) => document.querySelector("#message").innerText.includes(name), {}, name);
  saw.unknown = await page.$eval("#message p", (sentence) => sentence.textContent);
  const headers = values.token ? { authorization: `Bearer ${values.token}` } : {};
  const answer = await fetch(`${base}/video/${name}/timeline?from=0&to=1`, { headers });
  assert.equal(answer.status, 404);
  assert.match(answer.headers.get("content-type"), /^text\/plain/);
  assert.ok((await answer.text()).includes(" "), "the refusal is a sentence");
}
