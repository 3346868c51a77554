// The player page: joins the list of streams, what is watched, the timeline and the clip. Each of them is a file beside this one
// and knows none of the others.

import * as api from "./api.js";
import { ClipPanel } from "./clip.js";
import { codecName } from "./codecs.js";
import { grown } from "./ranges.js";
import { signInForm } from "./sign_in.js";
import { streamList } from "./streams.js";
import { Preview } from "./preview.js";
import { Timeline } from "./timeline.js";
import { SECOND, clock, day, fromInput, moment, span, toInput } from "./times.js";
import { Watch } from "./watch.js";

const POLL = 4 * SECOND;
const TICK = 200;
const NOTE = 7 * SECOND;
/** A clock of a camera that is further off than this is told. */
const SKEW_TOLD = 20 * SECOND;
const MARKS_LISTED_MAX = 12;

const byId = (id) => document.getElementById(id);
const page = {
  streams: [],
  /** Of the gateway's clock before this device's, ms. */
  ahead: 0,
  polled: 0,
  name: null,
  record: { ranges: [], marks: [], loaded: null, at: 0 },
};

const stream = () => page.streams.find(({ name }) => name === page.name) ?? null;
const gatewayNow = () => Date.now() + page.ahead;
const isSkewed = ({ live, newest_ms }) => live && Math.abs(newest_ms - (page.polled + page.ahead)) > SKEW_TOLD;
/** Now, by the clock of the camera watched. */
function cameraNow() {
  const watched = stream();
  return watched && isSkewed(watched) ? watched.newest_ms + (Date.now() - page.polled) : gatewayNow();
}

// ---- the parts -------------------------------------------------------------------------------------------------------

const watch = new Watch(byId("video"), byId("image"), {
  busy: (yes) => (byId("busy").hidden = !yes),
  changed() {
    showControls();
    if (watch.isLive) writeAddress();
  },
  message: showMessage,
  note: showNote,
  showing(way) {
    byId("video").hidden = way !== "film";
    byId("image").hidden = way !== "images";
    byId("mute").hidden = way !== "film";
  },
  wantsClip: () => clip.open(),
});

const timeline = new Timeline(byId("timeline"), {
  jump: (ms, options) => stream() && jump(ms, options),
  viewed,
  selected: (selection) => clip.select(selection),
  hovered: (ms) => preview.at(page.name, ms, page.record.ranges),
  key: shortcut,
});

const clip = new ClipPanel(
  () => ({ name: page.name, head: watch.date, newest: stream()?.newest_ms ?? 0, ranges: page.record.ranges, loaded: page.record.loaded }),
  {
    selected: (selection) => timeline.set({ selection }),
    opened: ({ from, to }) => timeline.reveal(from, to),
    note: showNote,
    marked: () => loadRecord(true),
  },
);

const preview = new Preview(byId("timeline").querySelector(".tip img"));
const list = streamList(byId("streams"), (name) => choose(name));
const signIn = signInForm(byId("sign-in"), byId("app"));

// ---- choosing and jumping --------------------------------------------------------------------------------------------

/** `#name` is live, `#name/1712345678000` a moment: an address that can be passed on. */
function fromAddress() {
  const [name, at] = location.hash.slice(1).split("/");
  return { name: decodeURIComponent(name), at: at ? Number(at) : null };
}

function writeAddress(at = null) {
  const address = `#${encodeURIComponent(page.name)}${at === null ? "" : `/${Math.round(at)}`}`;
  if (location.hash !== address) history.replaceState(null, "", address);
}

function choose(name, at = null) {
  const isNew = name !== page.name;
  page.name = name;
  if (isNew) {
    page.record = { ranges: [], marks: [], loaded: null, at: 0 };
    if (clip.isOpen) clip.close();
    showNote("");
  }
  const chosen = stream();
  document.title = `${name} · Headwater`;
  list.show(page.streams, name, gatewayNow());
  if (!chosen) return unknown(name);
  writeAddress(at);
  byId("image").alt = `Picture of ${name}`;
  byId("jump-to").value = toInput(at ?? cameraNow());
  timeline.set({ ranges: [], marks: [], head: at, isLive: false, now: cameraNow(), ...ends(chosen) });
  watch.choose(chosen, at);
  timeline.follow();
  loadRecord(true);
}

function unknown(name) {
  watch.stop();
  timeline.set({ ranges: [], marks: [], head: null });
  byId("marks").replaceChildren();
  const others = page.streams.length ? "Choose one from the list." : "No stream has video yet.";
  showMessage(`There is no stream called “${name}”. ${others}`);
  showControls();
}

/** `options` are those of `Watch.at`. */
function jump(ms, options) {
  if (watch.meansLive(ms)) return goLive();
  writeAddress(ms);
  byId("jump-to").value = toInput(ms);
  timeline.follow();
  watch.at(ms, options);
}

function goLive() {
  writeAddress();
  watch.live();
  timeline.follow();
}

// ---- what the gateway knows ------------------------------------------------------------------------------------------

async function poll() {
  try {
    const { streams, ahead } = await api.streams();
    Object.assign(page, { streams, ahead, polled: Date.now() });
    byId("link").textContent = "";
    signIn.opened();
    arrived();
  } catch (error) {
    if (error.status === 401) return;
    byId("link").textContent = error.message;
    byId("app").hidden = false;
  }
}

function arrived() {
  list.show(page.streams, page.name, gatewayNow());
  if (page.name === null) return first();
  const watched = stream();
  if (!watched) return;
  watch.refresh(watched);
  loadRecord();
}

function first() {
  const asked = fromAddress();
  if (asked.name) return choose(asked.name, asked.at);
  const best = page.streams.find(({ live }) => live) ?? page.streams[0];
  if (best) return choose(best.name);
  showMessage("No camera has sent video to this gateway yet. Its first pictures appear here by themselves.");
}

let soon = null;
function viewed(from, to) {
  for (const button of byId("spans").children) {
    button.setAttribute("aria-pressed", String(Math.abs(Number(button.dataset.span) - (to - from)) < SECOND));
  }
  clearTimeout(soon);
  soon = setTimeout(() => loadRecord(), 120);
}

async function loadRecord(anyway = false) {
  const [name, { from, to }, { loaded, at }] = [page.name, timeline.view, page.record];
  if (!stream()) return;
  const length = to - from;
  const isCovered = loaded && loaded.from <= from && Math.min(to, gatewayNow()) <= loaded.to;
  const isCoarse = loaded && loaded.to - loaded.from > 12 * length;
  const isOld = Date.now() - at > 2 * POLL;
  if (isCovered && !isCoarse && !isOld && !anyway) return;
  const asked = { from: from - length, to: to + length };
  page.record.at = Date.now();
  try {
    const { ranges, marks } = await api.timeline(name, Math.max(0, asked.from), asked.to);
    if (name !== page.name) return;
    page.record = { ranges, marks, loaded: asked, at: Date.now() };
    timeline.set({ marks, ranges: grownRanges() });
    showMarks();
  } catch (error) {
    if (error.status) showNote(error.message);
  }
}

const ends = ({ oldest_ms, newest_ms, live }) => ({ oldest: oldest_ms, newest: live || !newest_ms ? cameraNow() : newest_ms });

function grownRanges() {
  const { newest_ms, live } = stream();
  return grown(page.record.ranges, live ? Math.max(newest_ms, watch.isLive ? watch.date : 0) : newest_ms, live);
}

// ---- what is shown ---------------------------------------------------------------------------------------------------

function showControls() {
  const watched = stream();
  const playing = !watch.isPaused;
  icon("play", playing ? "pause" : "play", playing ? "Pause" : "Play");
  for (const id of ["play", "back", "forward", "rate", "cut"]) byId(id).disabled = !watched?.newest_ms;
  byId("rate").value = String(watch.rate);
  const live = byId("live");
  live.disabled = !watched?.live;
  live.classList.toggle("is-on", watch.isLive);
  live.setAttribute("aria-pressed", String(watch.isLive));
  live.querySelector(".word").textContent = watch.isLive || !watched?.live ? "Live" : "Go live";
}

function icon(id, symbol, label) {
  const button = byId(id);
  button.querySelector("use").setAttribute("href", `#i-${symbol}`);
  button.setAttribute("aria-label", label);
  button.title = label;
}

function tick() {
  watch.tick();
  const watched = stream();
  const [date, now] = [watched ? watch.date : null, cameraNow()];
  const shown = byId("time");
  shown.firstElementChild.textContent = date === null ? "--:--:--" : clock(date);
  shown.lastElementChild.textContent = date === null ? "" : day(date);
  if (date === null) shown.removeAttribute("datetime");
  else shown.dateTime = new Date(date).toISOString();
  const latency = watch.isLive && watch.hasPicture && date !== null ? Math.max(0, now - date) / SECOND : null;
  showLatency(latency);
  if (!watched) return;
  if (watch.hasPicture) watch.recovered();
  timeline.set({ head: date, now, ...ends(watched), isLive: watch.isLive, ranges: grownRanges() });
}

let smooth = null;
function showLatency(latency) {
  smooth = latency === null ? null : smooth === null ? latency : smooth * 0.85 + latency * 0.15;
  const text = smooth === null ? "" : `${smooth.toFixed(smooth < 9.95 ? 1 : 0)} s`;
  if (byId("latency").textContent === text) return;
  byId("latency").textContent = text;
  byId("live").title = smooth === null ? "" : `The picture is ${text} old.`;
}

function showMessage(sentence, actions = [], isSmall = false) {
  const box = byId("message");
  box.hidden = sentence === null;
  box.classList.toggle("is-small", isSmall);
  box.firstElementChild.textContent = sentence ?? "";
  const buttons = actions.map(({ text, act }) => {
    const button = document.createElement("button");
    [button.type, button.textContent] = ["button", text];
    button.addEventListener("click", act);
    return button;
  });
  box.lastElementChild.replaceChildren(...buttons);
}

let noteEnds = null;
function showNote(sentence) {
  clearTimeout(noteEnds);
  byId("note").textContent = sentence || standing();
  if (sentence) noteEnds = setTimeout(() => showNote(""), NOTE);
}

/** What stands below the timeline when there is nothing to say. */
function standing() {
  const watched = stream();
  if (!watched?.newest_ms) return "";
  if (isSkewed(watched)) {
    const off = watched.newest_ms - (page.polled + page.ahead);
    return `The clock of ${watched.name} is ${span(off)} ${off > 0 ? "ahead of" : "behind"} the gateway's. Times are the camera's.`;
  }
  return `${codecName(watched.video)}, recorded since ${moment(watched.oldest_ms, gatewayNow())}.`;
}

function showMarks() {
  const newest = [...page.record.marks].sort((a, b) => b.from_ms - a.from_ms).slice(0, MARKS_LISTED_MAX);
  const items = newest.map((mark) => {
    const [item, button, time] = ["li", "button", "time"].map((kind) => document.createElement(kind));
    button.type = "button";
    time.textContent = moment(mark.from_ms, gatewayNow());
    button.append(time, ` ${mark.name || "mark"}`);
    button.addEventListener("click", () => {
      jump(mark.from_ms);
      clip.open({ from: mark.from_ms, to: Math.max(mark.to_ms, mark.from_ms + SECOND) });
    });
    item.append(button);
    return item;
  });
  byId("marks").replaceChildren(...items);
}

// ---- buttons and keys ------------------------------------------------------------------------------------------------

const actions = {
  play: () => watch.toggle(),
  back: () => skip(-10 * SECOND),
  forward: () => skip(10 * SECOND),
  live: goLive,
  mute: () => mute(!byId("video").muted),
  full: fullScreen,
  earlier: () => timeline.pan(-0.5),
  later: () => timeline.pan(0.5),
};
for (const [id, act] of Object.entries(actions)) byId(id).addEventListener("click", act);

byId("rate").addEventListener("change", (event) => watch.setRate(Number(event.target.value)));
byId("stage").addEventListener("dblclick", fullScreen);
byId("jump").addEventListener("submit", (event) => {
  event.preventDefault();
  const ms = fromInput(byId("jump-to").value);
  if (ms !== null && stream()) jump(ms);
});
byId("spans").addEventListener("click", ({ target }) => {
  if (target.dataset.span) timeline.zoom(Number(target.dataset.span));
});
window.addEventListener("hashchange", () => {
  const { name, at } = fromAddress();
  if (name) choose(name, at);
});

function skip(ms) {
  jump((watch.date ?? stream().newest_ms) + ms, { stayPaused: true });
}

function mute(yes) {
  byId("video").muted = yes;
  icon("mute", yes ? "muted" : "sound", yes ? "Sound on" : "Sound off");
}

function fullScreen() {
  const [main, video] = [byId("watch"), byId("video")];
  if (document.fullscreenElement) document.exitFullscreen();
  else if (main.requestFullscreen) main.requestFullscreen();
  else video.webkitEnterFullscreen?.(); // telephones show only the video alone
}

/** Keys that work while the timeline has the focus. */
function shortcut(event) {
  const keys = { " ": actions.play, l: goLive, m: actions.mute, f: fullScreen, i: () => clip.here("from"), o: () => clip.here("to") };
  const act = keys[event.key.toLowerCase()];
  if (!act || !stream()) return;
  event.preventDefault();
  act();
}

// ---- on the clock ----------------------------------------------------------------------------------------------------

// A page that nobody looks at asks for nothing.
setInterval(() => document.hidden || signIn.isShown() || poll(), POLL);
setInterval(() => document.hidden || tick(), TICK);
document.addEventListener("visibilitychange", () => document.hidden || signIn.isShown() || poll());
poll();
