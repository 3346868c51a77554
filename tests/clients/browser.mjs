// Headless Chromium for the clients beside this file: one page, and everything the browser has to complain about.
//
// Needs puppeteer-core, and Chromium where CHROMIUM or /usr/bin/chromium says.
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import puppeteer from "puppeteer-core";

export const BOUND_MS = 20_000;

/** `{browser, page, folder, close}`; the folder is the browser's own and goes with it. */
export async function open() {
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "headwater-browser-"));
  let browser = null;
  const close = async () => {
    await browser?.close();
    await fs.rm(folder, { recursive: true, force: true });
  };
  try {
    browser = await puppeteer.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      headless: true,
      userDataDir: path.join(folder, "profile"),
      args: ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"],
    });
    const page = await browser.newPage();
    page.setDefaultTimeout(BOUND_MS);
    await page.setViewport({ width: 1280, height: 800 });
    return { browser, page, folder, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What the page complains of from now on, violations of its policy included, as `complain(text)`. */
export async function listen(page, complain) {
  page.on("console", (line) => ["error", "warn"].includes(line.type()) && complain(`${line.text()} ${line.location().url ?? ""}`));
  page.on("pageerror", (error) => complain(error.message));
  page.on("response", (response) => response.status() >= 400 && complain(`${response.status()} ${response.url()}`));
  await page.exposeFunction("violated", (what) => complain(`policy: ${what}`));
  await page.evaluateOnNewDocument(() => {
    document.addEventListener("securitypolicyviolation", (event) => window.violated(`${event.violatedDirective} ${event.blockedURI}`));
  });
}

/**
 * A whole visit of the player page: `act(page, step)` does it and says where it is with `step(name)`. Prints one line of JSON with
 * what is in `saw`; the process exits 1 if a check failed, or if the browser had anything to complain about.
 */
export async function visit(saw, act) {
  const complaints = [];
  let [opened, at] = [null, "start"];
  try {
    opened = await open();
    await listen(opened.page, (text) => complaints.push(text));
    await act(opened.page, (name) => (at = name));
    assert.deepEqual(complaints, [], "errors in the console or against the policy");
    console.log(JSON.stringify({ ok: true, ...saw }));
  } catch (error) {
    const said = await opened?.page.$eval("#message", (message) => message.innerText).catch(() => null);
    console.log(JSON.stringify({ ok: false, step: at, error: error.message, said, complaints, ...saw }));
    process.exitCode = 1;
  } finally {
    await opened?.close();
  }
}

/** Waits until the element `#video` shows moving pictures; how far it is then. */
export async function moves(page, seconds) {
  const look = () => {
    const video = document.querySelector("#video");
    const frames = video.getVideoPlaybackQuality().totalVideoFrames;
    const { currentTime: position, videoWidth: width, videoHeight: height, readyState: ready, error } = video;
    return { position, width, height, ready, frames, error: error && `${error.code} ${error.message}` };
  };
  await page.waitForFunction(() => {
    const video = document.querySelector("#video");
    return video.error || (video.readyState >= 3 && video.videoWidth > 0 && !video.paused && !video.seeking);
  });
  const before = await page.evaluate(look);
  await page.waitForFunction(
    (until) => document.querySelector("#video").error || document.querySelector("#video").currentTime > until,
    {},
    before.position + seconds,
  );
  const after = await page.evaluate(look);
  return { ...after, moved_s: after.position - before.position, frames: after.frames - before.frames };
}
