// The timeline: what of it is shown, and what pointer and keys do with it. How it looks is in timeline_draw.js.
//
// It knows times and pixels, no stream and no playback: it says "jump to this moment" and is told where the head stands.

import { draw } from "./timeline_draw.js";
import { clock, day, moment, DAY_MS, HOUR, MINUTE, SECOND } from "./times.js";

const SPAN_MIN = MINUTE;
const SPAN_MAX = 32 * DAY_MS;
/** A pointer that moved less than this was a click. */
const CLICK_PX = 5;
const GRIP_PX = 12;
/** Where the newest moment stands when the view follows it. */
const LIVE_AT = 0.96;

/**
 * `events`: `jump(ms, {stayPaused})`, `viewed(from, to)`, `selected({from, to})`, `hovered(ms | null)`, `key(event)` for keys that are not
 * the timeline's own.
 */
export class Timeline {
  #root;
  #canvas;
  #tip;
  #events;
  #view = { from: 0, to: HOUR };
  #state = { ranges: [], marks: [], head: null, now: 0, oldest: 0, newest: 0, selection: null, hover: null, isLive: false };
  #follows = true;
  #frame = 0;
  #pointers = new Map();
  #drag = null;

  constructor(root, events) {
    this.#root = root;
    this.#canvas = root.querySelector("canvas");
    this.#tip = root.querySelector(".tip");
    this.#events = events;
    new ResizeObserver(() => this.#redraw()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
    const on = (name, act, options) => root.addEventListener(name, act, options);
    on("pointerdown", (event) => this.#press(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#release(event));
    on("pointercancel", (event) => this.#forget(event));
    on("pointerleave", () => this.#hover(null));
    on("wheel", (event) => this.#wheel(event), { passive: false });
    on("keydown", (event) => this.#key(event));
  }

  get view() {
    return this.#view;
  }

  get span() {
    return this.#view.to - this.#view.from;
  }

  /** Any of: ranges, marks, head, now, oldest, newest, selection, isLive. The view goes with the head unless the reader moved it. */
  set(changes) {
    Object.assign(this.#state, changes);
    if (this.#follows && !this.#drag) this.#follow();
    this.#describe();
    this.#redraw();
  }

  /** The view goes with the head again. */
  follow() {
    this.#follows = true;
    this.set({});
  }

  zoom(span, around = this.#anchor()) {
    const to = Math.min(SPAN_MAX, Math.max(SPAN_MIN, span));
    const share = (around - this.#view.from) / this.span;
    this.#look(around - to * share, to);
    if (this.#follows) this.#follow();
  }

  /** By so many times its own length. */
  pan(lengths) {
    this.#follows = false;
    this.#look(this.#view.from + this.span * lengths);
  }

  /** Shows a stretch whole, and large enough to take hold of. */
  reveal(from, to) {
    const length = to - from;
    const isSeen = from >= this.#view.from && to <= this.#view.to;
    if (isSeen && length * 15 > this.span) return;
    this.#follows = false;
    const span = length * 15 > this.span ? Math.max(this.span, length * 1.2) : length * 10;
    this.#look((from + to) / 2 - span / 2, span);
  }

  #anchor() {
    const { head } = this.#state;
    const isSeen = head !== null && head >= this.#view.from && head <= this.#view.to;
    return isSeen ? head : (this.#view.from + this.#view.to) / 2;
  }

  #look(from, span = this.span) {
    const latest = this.#state.now + span * (1 - LIVE_AT);
    const start = Math.min(from, Math.max(latest, this.#state.oldest + span * 0.5) - span);
    this.#view = { from: start, to: start + span };
    this.#events.viewed(this.#view.from, this.#view.to);
    this.#redraw();
  }

  #follow() {
    const { head, now, newest, isLive } = this.#state;
    const { from, to } = this.#view;
    if (isLive || head === null) return this.#look((isLive ? now : newest) - this.span * LIVE_AT);
    if (head < from || head > to - this.span * 0.03) this.#look(head - this.span * (head > to ? 0.2 : 0.5));
  }

  // ---- pointer

  #x(event) {
    return event.clientX - this.#root.getBoundingClientRect().left;
  }

  #time(x) {
    return this.#view.from + (x / this.#root.clientWidth) * this.span;
  }

  #place(ms) {
    return ((ms - this.#view.from) / this.span) * this.#root.clientWidth;
  }

  #grip(x) {
    const { selection } = this.#state;
    if (!selection) return null;
    const near = ["from", "to"].map((side) => ({ side, off: Math.abs(this.#place(selection[side]) - x) }));
    const [best] = near.sort((a, b) => a.off - b.off);
    return best.off <= GRIP_PX ? best.side : null;
  }

  #press(event) {
    if (event.button !== 0) return;
    const x = this.#x(event);
    this.#root.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, x);
    const pair = [...this.#pointers.values()];
    if (pair.length === 2) {
      this.#drag = { kind: "pinch", apart: Math.abs(pair[0] - pair[1]), span: this.span, at: this.#time((pair[0] + pair[1]) / 2) };
    } else if (pair.length === 1) {
      const grip = this.#grip(x);
      this.#drag = { kind: grip ? "grip" : "pan", grip, x, from: this.#view.from, moved: false };
    }
  }

  #move(event) {
    const x = this.#x(event);
    if (!this.#drag) return this.#hover(x);
    if (!this.#pointers.has(event.pointerId)) return;
    this.#pointers.set(event.pointerId, x);
    const drag = this.#drag;
    if (drag.kind === "pinch") return this.#pinch(drag);
    if (!drag.moved && Math.abs(x - drag.x) < CLICK_PX) return;
    drag.moved = true;
    this.#follows &&= drag.kind === "grip";
    if (drag.kind === "pan") {
      this.#hover(null);
      this.#root.classList.add("is-panned");
      return this.#look(drag.from - ((x - drag.x) / this.#root.clientWidth) * this.span);
    }
    this.#stretch(drag.grip, this.#time(x));
    this.#hover(x);
  }

  #pinch(drag) {
    const [a, b] = [...this.#pointers.values()];
    drag.moved = true;
    this.#follows = false;
    const span = (drag.span * drag.apart) / Math.max(20, Math.abs(a - b));
    this.zoom(span, drag.at);
  }

  #stretch(side, ms) {
    const { selection, now } = this.#state;
    const other = side === "from" ? "to" : "from";
    const limit = Math.round(Math.min(ms, now) / SECOND) * SECOND;
    const order = side === "from" ? Math.min(limit, selection[other] - SECOND) : Math.max(limit, selection[other] + SECOND);
    this.#events.selected({ ...selection, [side]: order });
  }

  #release(event) {
    const drag = this.#drag;
    this.#forget(event);
    if (drag && !drag.moved && drag.kind !== "pinch") this.#jump(this.#time(this.#x(event)));
  }

  #forget(event) {
    this.#pointers.delete(event.pointerId);
    this.#root.classList.remove("is-panned");
    if (this.#pointers.size === 0 || this.#drag?.kind === "pinch") this.#drag = null;
    if (event.pointerType !== "mouse") this.#hover(null);
  }

  #jump(ms, options) {
    this.#follows = true;
    this.#events.jump(Math.min(ms, this.#state.now), options);
  }

  #wheel(event) {
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return this.pan(event.deltaX / this.#root.clientWidth);
    this.#follows &&= this.#state.isLive;
    this.zoom(this.span * Math.exp(Math.max(-0.4, Math.min(0.4, event.deltaY / 300))), this.#time(this.#x(event)));
  }

  #hover(x) {
    const ms = x === null ? null : this.#time(x);
    this.#state.hover = ms;
    this.#root.classList.toggle("is-grip", x !== null && this.#grip(x) !== null);
    this.#tip.hidden = x === null;
    if (x !== null) {
      const mark = this.#state.marks.find(({ from_ms, to_ms }) => this.#place(from_ms) - 6 <= x && x <= this.#place(to_ms) + 6);
      this.#tip.querySelector("span").textContent = moment(ms, this.#state.now) + (mark ? `, ${mark.name || "mark"}` : "");
      const half = this.#tip.offsetWidth / 2;
      this.#tip.style.left = `${Math.max(half, Math.min(this.#root.clientWidth - half, x))}px`;
    }
    this.#events.hovered(ms);
    this.#redraw();
  }

  // ---- keys

  #key(event) {
    const step = event.shiftKey ? MINUTE : 10 * SECOND;
    const { head, now, oldest } = this.#state;
    const go = (ms) => this.#jump((head ?? now) + ms, { stayPaused: true });
    const acts = {
      ArrowLeft: () => go(-step),
      ArrowRight: () => go(step),
      PageUp: () => go(-this.span / 10),
      PageDown: () => go(this.span / 10),
      Home: () => this.#jump(oldest),
      End: () => this.#jump(now),
      "+": () => this.zoom(this.span / 2),
      "=": () => this.zoom(this.span / 2),
      "-": () => this.zoom(this.span * 2),
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (!acts[event.key]) return this.#events.key(event);
    event.preventDefault();
    acts[event.key]();
  }

  #describe() {
    const { head, now, oldest } = this.#state;
    const at = head ?? now;
    const say = { "aria-valuemin": oldest, "aria-valuemax": Math.max(now, at), "aria-valuenow": at };
    for (const [name, ms] of Object.entries(say)) this.#root.setAttribute(name, String(Math.round(ms / SECOND)));
    this.#root.setAttribute("aria-valuetext", head === null ? "No picture" : `${clock(at)}, ${day(at)}`);
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      draw(this.#canvas, this.#root, this.#view, this.#state);
    });
  }
}
