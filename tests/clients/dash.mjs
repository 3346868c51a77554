// dash.js in headless Chromium plays the URL of a DASH session, in a page of another origin.
//
//     node dash.mjs URL [--seconds 2] [--to-the-end]
//
// With --to-the-end all of it is played; it is to be a recording of some seconds. Prints one line of JSON with what it saw; exits
// 1 if nothing moves, or if dash.js or the browser complains. Needs dashjs and puppeteer-core.
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import http from "node:http";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { listen, moves, open } from "./browser.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: "string", default: "2" }, "to-the-end": { type: "boolean" } },
});
const [url] = positionals;
const PAGE = `<!doctype html><link rel="icon" href="data:,"><video id="video" muted></video><script src="dash.js"></script>`;
const LIBRARY = fileURLToPath(import.meta.resolve("dashjs")).replace("/esm/", "/umd/");

const complaints = [];
const saw = { url: url.replace(/SessionToken=.*/, "") };
let opened = null;
let step = "start";
const library = await fs.readFile(LIBRARY);
const server = http.createServer((request, response) => {
  const isLibrary = request.url === "/dash.js";
  response.setHeader("content-type", isLibrary ? "text/javascript" : "text/html");
  response.end(isLibrary ? library : PAGE);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
try {
  opened = await open();
  const { page } = opened;
  await listen(page, (text) => complaints.push(text));
  await page.goto(`http://127.0.0.1:${server.address().port}/`, { waitUntil: "load" });
  step = "play";
  await page.evaluate((url) => {
    const player = (window.player = dashjs.MediaPlayer().create());
    const seen = (window.seen = { errors: [], loaded: 0, periods: [] });
    player.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_WARNING } });
    player.on("error", ({ error }) => seen.errors.push(`${error.code} ${error.message}`));
    player.on("fragmentLoadingCompleted", () => (seen.loaded += 1));
    player.on("periodSwitchCompleted", ({ toStreamInfo }) => seen.periods.push(toStreamInfo?.id));
    player.initialize(document.querySelector("#video"), url, true);
  }, url);
  Object.assign(saw, await moves(page, Number(values.seconds)));
  if (values["to-the-end"]) {
    step = "to the end";
    await page.waitForFunction(() => document.querySelector("#video").ended);
    saw.frames_all = await page.$eval("#video", (video) => video.getVideoPlaybackQuality().totalVideoFrames);
    saw.duration_s = await page.$eval("#video", (video) => video.duration);
  }
  step = "quiet";
  await look(page);
  assert.equal(saw.error, null);
  assert.deepEqual([saw.errors, complaints], [[], []], "errors of dash.js or the browser");
  console.log(JSON.stringify({ ...saw, ok: true }));
} catch (error) {
  if (opened) await look(opened.page).catch(() => {});
  console.log(JSON.stringify({ ...saw, ok: false, step, says: error.message, complaints }));
  process.exitCode = 1;
} finally {
  await opened?.close();
  server.close();
}

async function look(page) {
  Object.assign(saw, await page.evaluate(() => {
    const { player, seen } = window;
    const video = document.querySelector("#video");
    const buffered = [...Array(video.buffered.length).keys()].map((at) => [video.buffered.start(at), video.buffered.end(at)]);
    const latency_s = player.isDynamic() ? player.getCurrentLiveLatency() : null;
    return { ...seen, buffered, at: video.currentTime, dropped: video.getVideoPlaybackQuality().droppedVideoFrames, latency_s };
  }));
}
