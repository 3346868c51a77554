// A stand-in for the gateway's video doors, to work on the player page and to try its test without a gateway.
//
//     node player_mock.mjs [PORT] [TOKEN]      then http://127.0.0.1:PORT/video
//
// It serves the page from gateway/src/console/assets and answers what the page asks, with pictures that ffmpeg draws once
// into the temporary directory: 64 seconds, repeated without end, with gaps, one stream for each thing that can be the matter.
// It is no product code, and keeps nothing.
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const [port = "8080", token = ""] = process.argv.slice(2);
const assets = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../gateway/src/console/assets");
const LOOP_S = 64;
const PARTS = 4; // a fragment is a second, a part a quarter of it
const HOUR = 3_600_000;
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; " +
  "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const TYPES = {
  html: "text/html; charset=utf-8", css: "text/css; charset=utf-8", js: "text/javascript; charset=utf-8",
  mjs: "text/javascript; charset=utf-8", txt: "text/plain; charset=utf-8", svg: "image/svg+xml",
  m3u8: "application/vnd.apple.mpegurl", mp4: "video/mp4", m4s: "video/iso.segment", jpg: "image/jpeg",
};

// ---- media -----------------------------------------------------------------------------------------------------------

const home = path.join(os.tmpdir(), "headwater-player-mock");
function draw() {
  if (fs.existsSync(path.join(home, "done"))) return;
  fs.mkdirSync(home, { recursive: true });
  const ffmpeg = (...args) => execFileSync("ffmpeg", ["-v", "error", "-y", ...args], { cwd: home });
  const film = ["-f", "lavfi", "-i", `testsrc2=size=1280x720:rate=24:duration=${LOOP_S}`];
  ffmpeg(...film, "-f", "lavfi", "-i", `sine=frequency=300:sample_rate=48000:duration=${LOOP_S}`,
    "-c:v", "libx264", "-preset", "veryfast", "-b:v", "1M", "-g", "24", "-keyint_min", "24", "-sc_threshold", "0",
    "-bf", "0", "-c:a", "aac", "-b:a", "64k",
    "-movflags", "+empty_moov+default_base_moof+frag_keyframe+omit_tfhd_offset", "-frag_duration", "250000", "film.mp4");
  ffmpeg("-i", "film.mp4", "-r", "1", "-q:v", "4", "-start_number", "0", "%d.jpg");
  fs.writeFileSync(path.join(home, "done"), "");
}
draw();

function boxes(bytes, start = 0, end = bytes.length) {
  const found = [];
  for (let at = start; at + 8 <= end; at += bytes.readUInt32BE(at)) {
    found.push({ type: bytes.toString("latin1", at + 4, at + 8), at, end: at + bytes.readUInt32BE(at) });
  }
  return found;
}
const film = fs.readFileSync(path.join(home, "film.mp4"));
const top = boxes(film);
const init = film.subarray(0, top.find((box) => box.type === "moov").end);
const moofs = top.filter((box) => box.type === "moof");
const parts = moofs.map((box, index) => film.subarray(box.at, moofs[index + 1]?.at ?? top.find((b) => b.type === "mfra").at));
if (parts.length !== LOOP_S * PARTS) throw new Error(`${parts.length} parts, not ${LOOP_S * PARTS}`);
const TIMESCALE = { 1: 12288, 2: 48000 };

// Part `index` since 1970, its decode times counted from `zero`: what comes after the loop goes on from where the loop ended.
function part(index, zero) {
  const bytes = Buffer.from(parts[index % parts.length]);
  const shift_s = (index - (index % parts.length)) / PARTS - zero;
  const moof = boxes(bytes)[0];
  for (const traf of boxes(bytes, moof.at + 8, moof.end).filter((box) => box.type === "traf")) {
    const inside = boxes(bytes, traf.at + 8, traf.end);
    const track = bytes.readUInt32BE(inside.find((box) => box.type === "tfhd").at + 12);
    const tfdt = inside.find((box) => box.type === "tfdt").at;
    const time = bytes.readBigUInt64BE(tfdt + 12) + BigInt(shift_s * TIMESCALE[track]);
    bytes.writeBigUInt64BE(time, tfdt + 12);
  }
  return bytes;
}
const fragment = (second, zero) => Buffer.concat([0, 1, 2, 3].map((k) => part(second * PARTS + k, zero)));

// ---- streams ---------------------------------------------------------------------------------------------------------

const begin = Date.now();
const floor = (ms) => Math.floor(ms / 1000) * 1000;
const H264 = { playable: true, codecs: "avc1.64001f,mp4a.40.2", video: "h264", width: 1280, height: 720 };
const streams = {
  "front-gate": { ...H264, since: 9 * 24 * HOUR, gaps: [[9, 12], [95, 110], [300, 301], [1000, 1400], [3000, 3003]] },
  "loading-dock": { ...H264, since: 30 * HOUR, until: 2 * HOUR + 400_000, gaps: [[200, 260]], decoder: false },
  "car-park": { ...H264, codecs: "hvc1.1.6.L93.B0,mp4a.40.2", video: "hevc", width: 2560, height: 1440, since: 50 * HOUR, gaps: [] },
  "boiler-gauge": { playable: false, codecs: "", video: "mjpeg", width: 1280, height: 720, since: 70 * HOUR, gaps: [[30, 45]] },
  "new-camera": { ...H264, since: 0, until: 0, gaps: [], empty: true },
};
const marks = {
  "front-gate": [[14, 0.5, "door"], [52, 1, "motion"], [160, 2, "delivery"], [420, 3, "door"]].map(([ago, min, name], id) => ({
    id: `m${id}`, from_ms: begin - ago * 60_000, to_ms: begin - ago * 60_000 + min * 60_000, name,
  })),
};

// Recorded ranges between two times. Gaps are given in minutes before the start of this program.
function ranges(stream, from, to) {
  if (stream.empty) return [];
  const newest = stream.until ? floor(begin - stream.until) : floor(Date.now());
  let start = floor(begin - stream.since);
  const found = [];
  for (const [near, far] of [...stream.gaps].reverse()) {
    found.push([start, floor(begin - far * 60_000)]);
    start = floor(begin - near * 60_000);
  }
  found.push([start, newest]);
  return found.map(([a, b]) => [Math.max(a, from), Math.min(b, to)]).filter(([a, b]) => a < b);
}
const seconds = (stream, from, to) =>
  ranges(stream, from - 999, to + 999).flatMap(([a, b]) => {
    const first = Math.floor(Math.max(a, from) / 1000);
    return Array.from({ length: Math.max(0, Math.ceil(Math.min(b, to) / 1000) - first) }, (_, k) => first + k);
  });

function describe([name, stream]) {
  const { playable, codecs, video, width, height } = stream;
  const all = ranges(stream, 0, Infinity);
  const count = all.reduce((sum, [a, b]) => sum + (b - a) / 1000, 0);
  const times = { oldest_ms: all[0]?.[0] ?? 0, newest_ms: all.at(-1)?.[1] ?? 0 };
  return { name, live: !stream.until && !stream.empty, playable, codecs, video, width, height, fragments: count, bytes: count * 130_000, ...times };
}

const dated = (second) => `#EXT-X-PROGRAM-DATE-TIME:${new Date(second * 1000).toISOString()}`;

function onDemand(stream, from, to) {
  const list = seconds(stream, from, to);
  if (!list.length) return null;
  const lines = ["#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-PLAYLIST-TYPE:VOD", "#EXT-X-TARGETDURATION:1", '#EXT-X-MAP:URI="init.mp4"'];
  list.forEach((second, index) => {
    if (index && list[index - 1] !== second - 1) lines.push("#EXT-X-DISCONTINUITY");
    lines.push(dated(second), "#EXTINF:1.000,", `seg-${second}.m4s`);
  });
  return [...lines, "#EXT-X-ENDLIST", ""].join("\n");
}

// What exists at this moment: a part is there when its time is over.
const partsThere = () => Math.floor((Date.now() - 120) / (1000 / PARTS));

function live(low) {
  const there = partsThere();
  const [last, open] = [Math.floor(there / PARTS), there % PARTS];
  const lines = ["#EXTM3U", "#EXT-X-VERSION:9", "#EXT-X-TARGETDURATION:1"];
  if (low) lines.push("#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=0.75,HOLD-BACK=3", "#EXT-X-PART-INF:PART-TARGET=0.25");
  lines.push(`#EXT-X-MEDIA-SEQUENCE:${last - 10}`, '#EXT-X-MAP:URI="init.mp4"');
  const partsOf = (second, count) => {
    for (let k = 0; k < count; k++) {
      lines.push(`#EXT-X-PART:DURATION=0.25,URI="part-${second * PARTS + k}.m4s"${k ? "" : ",INDEPENDENT=YES"}`);
    }
  };
  for (let second = last - 10; second < last; second++) {
    lines.push(dated(second));
    if (low && second >= last - 3) partsOf(second, PARTS);
    lines.push("#EXTINF:1.000,", `seg-${second}.m4s`);
  }
  if (low) {
    lines.push(dated(last));
    partsOf(last, open);
    lines.push(`#EXT-X-PRELOAD-HINT:TYPE=PART,URI="part-${there}.m4s"`);
  }
  return [...lines, ""].join("\n");
}

async function until(index) {
  for (let turn = 0; turn < 300 && partsThere() <= index; turn++) await new Promise((done) => setTimeout(done, 10));
}

// ---- HTTP ------------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, "http://mock");
  const send = (status, type, body, headers = {}) => {
    response.writeHead(status, { "content-type": TYPES[type] ?? type, "content-length": Buffer.byteLength(body), "cache-control": "no-store", ...headers });
    response.end(request.method === "HEAD" ? "" : body);
  };
  try {
    await answer(request, url, send);
  } catch (error) {
    const status = error instanceof Refused ? error.status : 500;
    send(status, "txt", `${error.message}\n`);
    if (status === 500) console.error(error);
  }
});

async function body(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

async function answer(request, url, send) {
  if (url.pathname === "/video" || url.pathname.startsWith("/assets/")) {
    const name = url.pathname === "/video" ? "player.html" : path.basename(url.pathname);
    const file = path.join(assets, name);
    if (!fs.existsSync(file)) throw new Refused(404, `there is no ${name}`);
    return send(200, name.split(".").at(-1), fs.readFileSync(file), { "content-security-policy": CSP, "x-content-type-options": "nosniff" });
  }
  if (url.pathname === "/login") {
    const given = new URLSearchParams(await body(request)).get("token");
    if (given !== token) throw new Refused(401, "this is not the token of the console");
    const cookie = `headwater_token=${encodeURIComponent(given)}; SameSite=Strict; HttpOnly; Path=/`;
    return send(303, "txt", "", { location: "/video", "set-cookie": cookie });
  }
  const cookie = `headwater_token=${encodeURIComponent(token)}`;
  if (token && request.headers.authorization !== `Bearer ${token}` && !(request.headers.cookie ?? "").split("; ").includes(cookie)) {
    throw new Refused(401, "send the token of [console] token_file");
  }
  if (url.pathname === "/video/streams") {
    const all = { now_ms: Date.now(), streams: Object.entries(streams).map(describe) };
    return send(200, "application/json", JSON.stringify(all));
  }
  const [, , name, what] = url.pathname.split("/").map(decodeURIComponent);
  const stream = streams[name];
  if (!stream) throw new Refused(404, `there is no stream ${name}`);
  const query = (key) => Number(url.searchParams.get(key));
  const [from, to] = [query("from"), query("to")];
  if (what === "timeline") {
    const seen = (marks[name] ?? []).filter((mark) => mark.to_ms >= from && mark.from_ms <= to);
    return send(200, "application/json", JSON.stringify({ ranges: ranges(stream, from, to), marks: seen }));
  }
  if (what === "marks" && request.method === "POST") {
    const mark = { id: `m${Date.now()}`, ...JSON.parse(await body(request)) };
    (marks[name] ??= []).push(mark);
    return send(201, "application/json", JSON.stringify(mark));
  }
  if (what === "image.jpg") return image(stream, url.searchParams.get("at"), send);
  if (!stream.playable) throw new Refused(409, `${name} is motion JPEG, which HLS cannot carry: ask for image.jpg`);
  if (what === "init.mp4") return send(200, "mp4", init);
  if (what === "live.m3u8") {
    if (stream.until || stream.empty) throw new Refused(404, `${name} is not live`);
    if (url.searchParams.has("_HLS_msn")) await until(query("_HLS_msn") * PARTS + (query("_HLS_part") || 0));
    return send(200, "m3u8", live(url.searchParams.get("ll") !== "0"));
  }
  if (what === "playlist.m3u8") {
    const list = onDemand(stream, from, to);
    if (!list) throw new Refused(404, "nothing is recorded in that time");
    return send(200, "m3u8", list);
  }
  if (what === "clip.mp4") {
    const list = seconds(stream, from, to).slice(0, 900);
    if (!list.length) throw new Refused(404, "nothing is recorded in that time");
    const clip = Buffer.concat([init, ...list.map((second) => fragment(second, list[0]))]);
    return send(200, "mp4", clip, { "content-disposition": `attachment; filename="${name}-${from}.mp4"` });
  }
  const piece = /^(seg|part)-(\d+)\.m4s$/.exec(what);
  if (!piece) throw new Refused(404, `there is no ${what}`);
  const zero = Math.floor((begin - stream.since) / 1000);
  if (piece[1] === "seg") return send(200, "m4s", fragment(Number(piece[2]), zero));
  await until(Number(piece[2]));
  send(200, "m4s", part(Number(piece[2]), zero));
}

function image(stream, at, send) {
  if (stream.decoder === false) throw new Refused(501, "this gateway has no decoder for H.264: install ffmpeg to get pictures");
  const all = ranges(stream, 0, at === null ? Infinity : Number(at) + 1);
  if (!all.length) throw new Refused(404, "there is no picture at that time");
  const time = all.at(-1)[1] - 1;
  const jpeg = fs.readFileSync(path.join(home, `${Math.floor(time / 1000) % LOOP_S}.jpg`));
  send(200, "jpg", jpeg, { "x-headwater-time-ms": String(floor(time)) });
}

server.keepAliveTimeout = 60_000;
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/video`));
