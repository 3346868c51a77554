// Shows a stream as single pictures, for cameras whose format HLS cannot carry: the newest again and again, or recorded ones
// as time goes by. The same object as in playback_film.js.

import { image } from "./api.js";

/** A picture older than this is not the one that was asked for: there is a gap. */
const STALE_MS = 10_000;

/**
 * `at` is the moment to begin with, null for the newest; `until` the end of what is recorded; `every_ms` the time between two
 * questions.
 */
export function openImages(element, { name, at, until, every_ms }, events) {
  const stop = new AbortController();
  let [shown, running, rate, blob] = [at, false, 1, null];
  let turn = null;

  async function show(moment) {
    const picture = await image(name, moment, stop.signal);
    if (blob) URL.revokeObjectURL(blob);
    blob = URL.createObjectURL(picture.blob);
    element.src = blob;
    events.busy(false);
    const isStale = moment !== null && picture.at !== null && Math.abs(picture.at - moment) > STALE_MS;
    shown = moment === null ? (picture.at ?? Date.now()) : isStale ? moment : Math.max(picture.at ?? moment, moment);
  }

  async function step(moment) {
    try {
      await show(moment);
    } catch (error) {
      if (stop.signal.aborted) return;
      return events.trouble({ status: error.status ?? 0, isMedia: false, sentence: error.message });
    }
    if (running) next(Date.now());
  }

  function next(since) {
    clearTimeout(turn);
    const from = shown;
    turn = setTimeout(() => {
      const moment = at === null ? null : from + (Date.now() - since) * rate;
      if (moment !== null && moment >= until) return events.ended(until);
      step(moment);
    }, every_ms);
  }

  events.busy(true);
  return {
    isLive: at === null,
    date: () => shown,
    hasPicture: () => blob !== null,
    play() {
      running = true;
      events.playing(true);
      step(at === null ? null : shown);
    },
    pause() {
      running = false;
      clearTimeout(turn);
      events.playing(false);
      if (!blob) step(shown);
    },
    setRate: (to) => (rate = to),
    seek: () => false,
    keepUp() {},
    close() {
      stop.abort();
      clearTimeout(turn);
      if (blob) URL.revokeObjectURL(blob);
      element.removeAttribute("src");
    },
  };
}
