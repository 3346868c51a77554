// Draws the timeline on its canvas: the scale, recorded ranges as bars, gaps between them, marks, the chosen clip, the head.

import { ticks } from "./times.js";

const BAR = { top: 20, height: 30 };
const LABEL_PX_MIN = 76;
const RADIUS = 3;

export function draw(canvas, root, view, state) {
  const [width, height] = [root.clientWidth, root.clientHeight];
  if (!width) return;
  const density = window.devicePixelRatio || 1;
  const [pixelsWide, pixelsHigh] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== pixelsWide || canvas.height !== pixelsHigh) Object.assign(canvas, { width: pixelsWide, height: pixelsHigh });
  const paper = canvas.getContext("2d");
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const x = (ms) => ((ms - view.from) / (view.to - view.from)) * width;

  paper.setTransform(density, 0, 0, density, 0, 0);
  paper.clearRect(0, 0, width, height);
  paper.font = `12px ${style.fontFamily}`;
  const on = { paper, x, width, height, colour, view };
  track(on, state);
  bars(on, state.ranges);
  scale(on);
  if (state.selection) selection(on, state.selection);
  for (const mark of state.marks) flag(on, mark);
  if (state.hover !== null) line(on, state.hover, colour("muted"), 1);
  if (state.head !== null) head(on, state);
}

function track({ paper, x, width, colour }, { now }) {
  paper.fillStyle = colour("track");
  paper.beginPath();
  paper.roundRect(0, BAR.top, Math.min(width, Math.max(0, x(now))), BAR.height, RADIUS);
  paper.fill();
}

// A range is never thinner than a pixel and a gap never narrower: neither may vanish by zooming out.
function bars({ paper, x, width, colour }, ranges) {
  paper.fillStyle = colour("recorded");
  let last = -2;
  for (const [start, end] of ranges) {
    const left = Math.max(x(start), last + 1);
    const right = Math.max(x(end), left + 1);
    last = right;
    if (right < 0 || left > width) continue;
    paper.beginPath();
    paper.roundRect(Math.max(left, -RADIUS), BAR.top, Math.min(right, width + RADIUS) - Math.max(left, -RADIUS), BAR.height, Math.min(RADIUS, (right - left) / 2));
    paper.fill();
  }
}

function scale({ paper, x, width, colour, view }) {
  const found = ticks(view.from, view.to, width / (view.to - view.from), LABEL_PX_MIN);
  paper.textAlign = "center";
  paper.textBaseline = "alphabetic";
  const bottom = BAR.top + BAR.height;
  for (const { ms, text, isDay } of found) {
    const at = Math.round(x(ms)) + 0.5;
    paper.fillStyle = colour(isDay ? "muted" : "line");
    paper.fillRect(at - 0.5, bottom + 2, 1, isDay ? 8 : 5);
    const half = paper.measureText(text).width / 2;
    if (at - half < 0 || at + half > width) continue;
    paper.fillStyle = colour(isDay ? "text" : "muted");
    paper.fillText(text, at, bottom + 22);
  }
}

function selection({ paper, x, colour }, { from, to }) {
  const [left, right] = [x(from), x(to)];
  const bottom = BAR.top + BAR.height;
  paper.globalAlpha = 0.3;
  paper.fillStyle = colour("chosen");
  paper.fillRect(left, BAR.top - 4, right - left, BAR.height + 8);
  paper.globalAlpha = 1;
  paper.fillStyle = colour("chosen");
  paper.strokeStyle = colour("surface");
  paper.lineWidth = 1.5;
  for (const [at, side] of [[left, -1], [right, 1]]) {
    paper.fillRect(at - 1, BAR.top - 6, 2, BAR.height + 12);
    paper.beginPath();
    paper.roundRect(side < 0 ? at - 9 : at - 1, BAR.top + 5, 10, bottom - BAR.top - 10, 3);
    paper.stroke();
    paper.fill();
  }
}

function flag({ paper, x, width, colour }, { from_ms, to_ms }) {
  const [left, right] = [x(from_ms), Math.max(x(to_ms), x(from_ms) + 6)];
  if (right < 0 || left > width) return;
  paper.fillStyle = colour("mark");
  paper.beginPath();
  paper.roundRect(left, BAR.top - 9, right - left, 6, 2);
  paper.fill();
}

function line({ paper, x }, ms, colour, thick) {
  paper.fillStyle = colour;
  paper.fillRect(Math.round(x(ms)) - thick / 2, BAR.top - 8, thick, BAR.height + 14);
}

function head(on, { head: ms, isLive }) {
  const { paper, x, colour } = on;
  const fill = colour(isLive ? "live" : "text");
  line(on, ms, colour("surface"), 5);
  line(on, ms, fill, 2);
  const at = Math.round(x(ms));
  paper.fillStyle = fill;
  paper.beginPath();
  paper.moveTo(at - 6, BAR.top - 17);
  paper.lineTo(at + 6, BAR.top - 17);
  paper.lineTo(at + 6, BAR.top - 12);
  paper.lineTo(at, BAR.top - 5);
  paper.lineTo(at - 6, BAR.top - 12);
  paper.fill();
}
