// Watching one stream: which playback is open, and what follows when it ends, meets a gap or breaks.
//
// Live and recorded pictures are two playbacks. Recorded ones are opened half an hour at a time, since a playlist of a day has
// 86,400 lines; the end of one opens the next, and near the newest picture it becomes live. A pause of live is a place in the
// recording. No elements but the two that show pictures: what is said and drawn goes through `events`.

import * as api from "./api.js";
import { cannotPlay, wayToShow } from "./codecs.js";
import { openFilm } from "./playback_film.js";
import { openImages } from "./playback_images.js";
import { nextRecorded } from "./ranges.js";
import { MINUTE, SECOND, moment, span } from "./times.js";

const WINDOW = 30 * MINUTE;
/** A recording that ends nearer than this to the newest picture becomes live. */
const NEARLY_LIVE = 15 * SECOND;
/** Who asks for a moment nearer than this to it means live. */
const MEANS_LIVE = 5 * SECOND;
/** From here on a leap of the time shown is worth a word. */
const GAP_TOLD = 3 * SECOND;
const RETRY_MAX_S = 10;
/** After so many breaks live is asked for without its low-latency parts. */
const BREAKS_MAX = 2;
const BROKE_OFF = "The connection broke off.";

/**
 * `events`: `busy(yes)`, `changed()` when what the buttons say may have changed, `message(sentence | null, actions, isSmall)`
 * with actions of `{text, act}`, `note(sentence)`, `showing("film" | "images")`, `wantsClip()`.
 */
export class Watch {
  #video;
  #image;
  #events;
  #stream = null;
  /** When the facts about the stream were asked for. */
  #known = 0;
  #playback = null;
  /** null: live. Else the moment that was asked for last. */
  #want = null;
  #held = null;
  #paused = false;
  #rate = 1;
  #tries = 0;
  /** How often low-latency live broke off although the gateway answers. */
  #breaks = 0;
  #turn = 0;
  #timer = null;
  #lastDate = null;

  constructor(video, image, events) {
    this.#video = video;
    this.#image = image;
    this.#events = events;
  }

  get isLive() {
    return Boolean(this.#playback?.isLive) && !this.#paused;
  }

  get isPaused() {
    return this.#paused || !this.#playback;
  }

  get rate() {
    return this.#rate;
  }

  /** The moment on the screen, or the one that is being loaded; null for none. */
  get date() {
    if (this.#held !== null) return this.#held;
    const shown = this.#playback?.hasPicture() ? this.#playback.date() : null;
    return shown ?? this.#want;
  }

  get hasPicture() {
    return Boolean(this.#playback?.hasPicture());
  }

  /** The newest facts about the stream: while live is watched it may have gone or come back. */
  refresh(stream) {
    const turned = this.#stream !== null && stream.live !== this.#stream.live;
    [this.#stream, this.#known] = [stream, Date.now()];
    if (turned && this.#want === null && !this.#paused) this.live();
  }

  choose(stream, at = null) {
    [this.#stream, this.#known] = [stream, Date.now()];
    [this.#tries, this.#breaks] = [0, 0];
    this.#rate = 1;
    if (at === null) this.live();
    else this.at(at);
  }

  live() {
    const turn = this.#begin(null);
    this.#paused = false;
    this.#rate = 1;
    if (!this.#stream.live) return this.#notLive();
    this.#open(null, null, turn);
  }

  /** Plays from a moment, or from the next that is recorded. */
  async at(ms, { stayPaused = false } = {}) {
    const stream = this.#stream;
    if (this.meansLive(ms)) return this.live();
    const paused = stayPaused && this.#paused;
    if (this.#held === null && this.#playback?.seek(ms)) {
      [this.#want, this.#lastDate] = [ms, null];
      return paused ? this.#events.changed() : this.play();
    }
    const turn = this.#begin(ms);
    this.#paused = paused;
    this.#events.busy(true);
    try {
      const found = await this.#recordedFrom(ms);
      if (turn !== this.#turn) return;
      if (!found) return this.#theEnd();
      if (found.start - ms > GAP_TOLD) {
        this.#events.note(`Nothing is recorded at ${moment(ms, stream.newest_ms)}. This is the next picture.`);
      }
      this.#want = found.start;
      this.#open(found.start, found.until, turn);
    } catch (error) {
      if (turn === this.#turn) this.#trouble({ status: error.status ?? 0, sentence: error.message }, turn);
    }
  }

  meansLive(ms) {
    // A live stream has gone on since it was asked about.
    const newest = this.#stream.newest_ms + Date.now() - this.#known;
    return this.#stream.live && ms > newest - MEANS_LIVE;
  }

  toggle() {
    if (this.isPaused) this.play();
    else this.#pause();
  }

  play() {
    this.#paused = false;
    if (this.#held !== null) this.at(this.#held);
    else if (this.#playback) this.#playback.play();
    else if (this.#want !== null) this.at(this.#want);
    else this.live();
    this.#events.changed();
  }

  setRate(rate) {
    if (this.#playback?.isLive && rate !== 1) {
      this.#events.note("Live has one speed. Choose a moment on the timeline first.");
      return this.#events.changed();
    }
    this.#rate = rate;
    this.#playback?.setRate(rate);
  }

  /** To be called a few times a second: keeps live near its edge, and tells gaps that were played over. */
  tick() {
    if (!this.#playback || this.#paused || this.#video.seeking) return;
    if (this.#playback.isLive) this.#playback.keepUp();
    const date = this.date;
    const leap = this.#lastDate === null ? 0 : date - this.#lastDate;
    if (leap > GAP_TOLD * Math.max(1, this.#rate) && !this.#playback.isLive) {
      this.#events.note(`${span(leap)} without pictures were skipped.`);
    }
    this.#lastDate = this.hasPicture ? date : null;
  }

  stop() {
    this.#begin(null);
    this.#stream = null;
  }

  // ---- opening and closing

  /** Closes what was, and gives the number by which late answers to it are known. */
  #begin(want) {
    clearTimeout(this.#timer);
    this.#playback?.close();
    [this.#playback, this.#want, this.#held, this.#lastDate] = [null, want, null, null];
    this.#events.message(null);
    this.#events.busy(false);
    return ++this.#turn;
  }

  #open(at, until, turn) {
    const way = wayToShow(this.#stream);
    const asImages = way !== "film";
    const events = {
      busy: (yes) => this.#events.busy(yes),
      playing: () => this.#events.changed(),
      ended: (end) => this.#ended(end),
      trouble: (trouble) => turn === this.#turn && (way === "none" ? this.#noPictures() : this.#trouble(trouble, turn)),
    };
    const { name } = this.#stream;
    this.#events.showing(asImages ? "images" : "film");
    this.#events.busy(true);
    if (way === "none") this.#noDecoder(true);
    if (asImages) {
      // What the gateway must decode first costs it more than a camera's own pictures.
      const every_ms = way === "images" ? 500 : 2000;
      this.#playback = openImages(this.#image, { name, at, until, every_ms }, events);
    } else {
      const low = this.#breaks < BREAKS_MAX;
      const address = at === null ? api.url.live(name, low) : api.url.playlist(name, at, until);
      this.#playback = openFilm(this.#video, address, at, events);
    }
    this.#playback.setRate(this.#rate);
    if (this.#paused) this.#playback.pause();
    else this.#playback.play();
    this.#events.changed();
  }

  /** `{start, until}` of what can be played from a moment on, null if nothing can. */
  async #recordedFrom(ms) {
    const { name, newest_ms } = this.#stream;
    for (const to of [ms + WINDOW, Math.max(newest_ms, ms) + SECOND]) {
      const { ranges } = await api.timeline(name, ms, to);
      const start = nextRecorded(ranges, ms);
      if (start === null) continue;
      const range = ranges.find(([, end]) => end > start);
      // Single pictures know of no gap: they are shown a range at a time.
      return { start, until: wayToShow(this.#stream) === "film" ? start + WINDOW : range[1] };
    }
    return null;
  }

  #pause() {
    if (this.#playback?.isLive) this.#held = this.date;
    this.#paused = true;
    this.#playback?.pause();
    this.#events.changed();
  }

  // ---- what comes next

  #ended(end) {
    const { live, newest_ms } = this.#stream;
    if (live && end > newest_ms - NEARLY_LIVE) this.live();
    else this.at(end);
  }

  #theEnd() {
    if (this.#stream.live) return this.live();
    this.#paused = true;
    this.#events.busy(false);
    this.#events.message("This is the end of the recording.", [this.#lastMinute("Play the last minute again")]);
    this.#events.changed();
  }

  #notLive() {
    const { name, newest_ms } = this.#stream;
    this.#events.changed();
    if (!newest_ms) return this.#events.message(`${name} has sent no pictures yet. Live begins by itself when it does.`);
    const last = `The last is from ${moment(newest_ms, Date.now())}.`;
    this.#events.message(`${name} sends no pictures now. ${last}`, [this.#lastMinute("Play the last minute")]);
  }

  #lastMinute(text) {
    return { text, act: () => this.at(this.#stream.newest_ms - MINUTE) };
  }

  /** Beside single pictures, for which the gateway needs a decoder, or in place of them. */
  #noDecoder(besidePictures) {
    const clip = { text: "Choose a clip", act: () => this.#events.wantsClip() };
    this.#events.message(cannotPlay(this.#stream, besidePictures), [clip], besidePictures);
  }

  #noPictures() {
    this.#playback?.close();
    this.#playback = null;
    this.#events.busy(false);
    this.#noDecoder(false);
    this.#events.changed();
  }

  async #trouble({ status, isMedia, sentence }, turn) {
    const { name, newest_ms } = this.#stream;
    const [want, at] = [this.#want, this.#want === null ? null : (this.date ?? this.#want)];
    const lastSeen = this.date ?? newest_ms;
    this.#playback?.close();
    this.#playback = null;
    this.#events.busy(false);
    const again = () => (want === null ? this.live() : this.at(at));
    this.#tries += 1;
    if (isMedia) {
      const says = "The browser could not decode these pictures. Try again, or download a clip and open it in another player.";
      const clip = { text: "Choose a clip", act: () => this.#events.wantsClip() };
      return this.#events.message(says, [{ text: "Try again", act: again }, clip]);
    }
    const address = want === null ? api.url.live(name, true) : api.url.playlist(name, at, at + MINUTE);
    const reason = sentence ?? (await api.check(address).then(() => BROKE_OFF, ({ message }) => message));
    if (turn !== this.#turn || status === 401) return;
    if (want === null && reason === BROKE_OFF) this.#breaks += 1;
    const isTheirs = status >= 400 && status < 500 && want !== null;
    if (isTheirs) return this.#events.message(reason, [{ text: "Try again", act: again }]);
    const wait_s = Math.min(RETRY_MAX_S, 2 ** Math.min(this.#tries, 4) / 2);
    this.#events.message(`${reason} Trying again.`, [{ text: "Try now", act: again }, ...this.#recordingInstead(want, lastSeen, reason)]);
    this.#timer = setTimeout(again, wait_s * SECOND);
  }

  #recordingInstead(want, lastSeen, reason) {
    const useful = want === null && lastSeen && this.#tries > 2 && reason !== api.NO_ANSWER;
    return useful ? [{ text: "Play the recording", act: () => this.at(lastSeen - MINUTE) }] : [];
  }

  /** Pictures move again: the next trouble is a new one. */
  recovered() {
    this.#tries = 0;
  }
}
