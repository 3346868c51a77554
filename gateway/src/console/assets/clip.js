// Choosing a clip: from and to, here as fields and on the timeline as handles; its download; and keeping it as a mark.

import * as api from "./api.js";
import { recordedBetween } from "./ranges.js";
import { MINUTE, SECOND, clock, fromInput, span, toInput } from "./times.js";

const byId = (id) => document.getElementById(id);

/**
 * `events`: `selected({from, to} | null)`, `opened({from, to})`, `note(sentence)`, `marked()`. `about()` gives `{name, head, newest, ranges}` of what is
 * watched.
 */
export class ClipPanel {
  #form = byId("clip");
  #opener = byId("cut");
  #from = byId("clip-from");
  #to = byId("clip-to");
  #length = byId("clip-length");
  #download = byId("download");
  #about;
  #events;
  #selection = null;

  constructor(about, events) {
    this.#about = about;
    this.#events = events;
    this.#opener.addEventListener("click", () => (this.#selection ? this.close() : this.open()));
    byId("clip-close").addEventListener("click", () => this.close());
    byId("from-here").addEventListener("click", () => this.here("from"));
    byId("to-here").addEventListener("click", () => this.here("to"));
    byId("mark").addEventListener("click", () => this.#mark());
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("change", () => this.#typed());
    this.#form.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    this.#download.addEventListener("click", (event) => this.#save(event));
  }

  get isOpen() {
    return this.#selection !== null;
  }

  /** With the last minute seen, unless told otherwise. */
  open(selection = null) {
    const { head, newest } = this.#about();
    const to = Math.floor(Math.min(head ?? newest, newest) / SECOND) * SECOND;
    if (!to) return this.#events.note("There is nothing to cut a clip from yet.");
    this.select(selection ?? { from: to - MINUTE, to });
    this.#events.opened(this.#selection);
  }

  close() {
    const hadFocus = this.#form.contains(document.activeElement);
    this.#selection = null;
    this.#form.hidden = true;
    this.#opener.setAttribute("aria-expanded", "false");
    this.#events.selected(null);
    if (hadFocus) this.#opener.focus();
  }

  select(selection) {
    this.#selection = selection;
    this.#form.hidden = false;
    this.#opener.setAttribute("aria-expanded", "true");
    this.#from.value = toInput(selection.from);
    this.#to.value = toInput(selection.to);
    this.#tell();
    this.#events.selected(selection);
  }

  /** Begin or end at the moment shown. */
  here(side) {
    const { head } = this.#about();
    if (head === null) return;
    if (!this.#selection) this.open();
    const at = Math.round(head / SECOND) * SECOND;
    const other = side === "from" ? { to: Math.max(this.#selection.to, at + SECOND) } : { from: Math.min(this.#selection.from, at - SECOND) };
    this.select({ ...this.#selection, ...other, [side]: at });
  }

  #typed() {
    const [from, to] = [fromInput(this.#from.value), fromInput(this.#to.value)];
    if (from === null || to === null) return;
    this.#selection = { from, to };
    this.#tell();
    if (from < to) this.#events.selected(this.#selection);
  }

  #tell() {
    const problem = this.#problem();
    this.#length.textContent = problem ?? span(this.#selection.to - this.#selection.from);
    this.#length.classList.toggle("problem", problem !== null);
    this.#download.setAttribute("aria-disabled", String(problem !== null));
    const { name } = this.#about();
    const { from, to } = this.#selection;
    this.#download.href = api.url.clip(name, from, to);
    this.#download.download = `${name} ${toInput(from).slice(0, 10)} ${clock(from).replaceAll(":", "-")}.mp4`;
  }

  #problem() {
    const { from, to } = this.#selection;
    if (from >= to) return "The end must be after the beginning.";
    const { ranges, loaded } = this.#about();
    const isKnown = loaded && loaded.from <= from && to <= loaded.to;
    return isKnown && !recordedBetween(ranges, from, to) ? "Nothing is recorded in this time." : null;
  }

  // The gateway is asked first: a refusal shall be a sentence here, not a file called clip.txt.
  async #save(event) {
    event.preventDefault();
    if (this.#download.getAttribute("aria-disabled") === "true") return;
    this.#events.note("The gateway is cutting the clip.");
    try {
      await api.check(this.#download.href);
    } catch (error) {
      return this.#events.note(error.message);
    }
    const link = document.createElement("a");
    [link.href, link.download] = [this.#download.href, this.#download.download];
    link.click();
    this.#events.note("The clip is among the downloads of this browser.");
  }

  async #mark() {
    const { name } = this.#about();
    const text = byId("mark-name").value.trim();
    if (!text) {
      byId("mark-name").focus();
      return this.#events.note("Give the mark a name first.");
    }
    try {
      await api.mark(name, this.#selection.from, this.#selection.to, text);
    } catch (error) {
      return this.#events.note(error.message);
    }
    byId("mark-name").value = "";
    this.#events.note(`“${text}” is marked.`);
    this.#events.marked();
  }
}
