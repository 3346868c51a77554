// The player page with a camera that sends single pictures (motion JPEG): each is shown as it is, live and from the recording.
//
//     node player_images.mjs http://127.0.0.1:8080 STREAM WIDTH HEIGHT COLOUR...
//
// STREAM is live: pictures of one colour each (rrggbb), one after the other, at most two a second, again and again. Prints one
// line of JSON with what it saw; exits 1 at the first check that fails.
import assert from "node:assert/strict";
import { BOUND_MS, visit } from "./browser.mjs";

const [base, stream, width, height, ...colours] = process.argv.slice(2);
const wanted = colours.map((colour) => colour.match(/\w\w/g).map((two) => Number.parseInt(two, 16)));
/** JPEG changes a colour by so much, of 255. */
const OFF_MAX = 6;

const saw = { base, stream };
await visit(saw, async (page, step) => {
  step("load");
  await page.goto(`${base}/video#${encodeURIComponent(stream)}`, { waitUntil: "load" });
  await page.waitForFunction(() => !document.querySelector("#image").hidden && document.querySelector("#image").naturalWidth > 0);
  const { size, hidden } = await page.evaluate(() => {
    const image = document.querySelector("#image");
    return { size: [image.naturalWidth, image.naturalHeight], hidden: document.querySelector("#video").hidden };
  });
  assert.deepEqual(size, [Number(width), Number(height)]);
  assert.ok(hidden, "the film's element is in front of the picture");
  step("live");
  saw.live = await changes(page);
  assert.equal(await page.$eval("#live", (button) => button.getAttribute("aria-pressed")), "true");
  step("recorded");
  // Ten seconds back.
  await page.focus("#timeline");
  await page.keyboard.press("ArrowLeft");
  await page.waitForFunction(() => document.querySelector("#live").getAttribute("aria-pressed") === "false");
  saw.recorded = await changes(page);
});

/** Every colour is shown within the bound, and never another; how often each was seen. */
async function changes(page) {
  const seen = wanted.map(() => 0);
  const until = Date.now() + BOUND_MS;
  while (seen.includes(0)) {
    assert.ok(Date.now() < until, `colours that were seen: ${seen}`);
    const shown = await colour(page);
    if (!shown) continue;
    const which = wanted.findIndex((rgb) => rgb.every((value, k) => Math.abs(value - shown[k]) <= OFF_MAX));
    assert.ok(which >= 0, `a colour that nobody sent: ${shown}`);
    seen[which] += 1;
    await new Promise((done) => setTimeout(done, 100));
  }
  return seen;
}

/** Of the middle of the picture on the screen; null while the next one is decoded. */
function colour(page) {
  return page.evaluate(() => {
    const image = document.querySelector("#image");
    if (!image.complete || image.naturalWidth === 0) return null;
    const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
    const paper = canvas.getContext("2d");
    paper.drawImage(image, 0, 0);
    return [...paper.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
  });
}
