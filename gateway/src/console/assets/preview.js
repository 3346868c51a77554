// The small picture at the pointer on the timeline. A gateway without a decoder for the stream is asked once and no more.

import { image } from "./api.js";
import { recordedBetween } from "./ranges.js";

/** The pointer must rest: each picture costs the gateway a decode. */
const REST_MS = 250;

export class Preview {
  #element;
  #without = new Set();
  #turn = null;
  #stop = new AbortController();
  #blob = null;

  constructor(element) {
    this.#element = element;
  }

  at(name, ms, ranges) {
    clearTimeout(this.#turn);
    this.#stop.abort();
    this.#element.hidden = true;
    if (ms === null || this.#without.has(name) || !recordedBetween(ranges, ms, ms + 1)) return;
    this.#turn = setTimeout(() => this.#show(name, ms), REST_MS);
  }

  async #show(name, ms) {
    this.#stop = new AbortController();
    try {
      const { blob } = await image(name, ms, this.#stop.signal);
      if (this.#blob) URL.revokeObjectURL(this.#blob);
      this.#blob = URL.createObjectURL(blob);
      this.#element.src = this.#blob;
      this.#element.hidden = false;
    } catch (error) {
      if (error.status === 501) this.#without.add(name);
    }
  }
}
