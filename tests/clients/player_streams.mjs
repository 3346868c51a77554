// The player page with several streams: each is in the list, and each plays when it is chosen there.
//
//     node player_streams.mjs http://127.0.0.1:8080 STREAM...
//
// All are live, in a format that Chromium plays (H.264). Prints one line of JSON with what it saw; exits 1 at the first check
// that fails.
import assert from "node:assert/strict";
import { moves, visit } from "./browser.mjs";

const [base, ...streams] = process.argv.slice(2);
const saw = { base, streams: {} };
await visit(saw, async (page, step) => {
  step("list");
  await page.goto(`${base}/video`, { waitUntil: "load" });
  await page.waitForFunction(
    (names) => names.every((name) => [...document.querySelectorAll("#streams .name")].some((one) => one.textContent === name)),
    {},
    streams,
  );
  for (const name of streams) {
    step(name);
    saw.streams[name] = await play(page, name);
  }
});

async function play(page, name) {
  const began = Date.now();
  for (const button of await page.$$("#streams button")) {
    if ((await button.$eval(".name", (one) => one.textContent)) === name) await button.click();
  }
  assert.equal(await page.$eval('#streams [aria-current="true"] .name', (one) => one.textContent), name);
  const shown = await moves(page, 2);
  assert.equal(shown.error, null);
  assert.ok(shown.frames > 10, `${shown.frames} pictures in ${shown.moved_s} s`);
  assert.equal(await page.$eval("#live", (button) => button.getAttribute("aria-pressed")), "true");
  return { took_ms: Date.now() - began, ...shown };
}
