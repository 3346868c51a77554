// Plays one HLS playlist in the video element, and says which moment of the camera's time is on the screen.
//
// A playback is opened, used and closed; another playlist is another playback. What comes next (live again, the next half
// hour, another try) is decided in player.js. The same object is made by playback_images.js for streams of single pictures.

import Hls from "./hls-1.7.4.light.min.mjs";

/** From this far behind, live leaps to the newest pictures rather than catching up. */
const BEHIND_MAX_S = 12;
const MEDIA_RECOVERIES_MAX = 2;

/**
 * `at` is the moment to begin with, null for live. `events`: `ended(ms)` with the moment behind the last picture, `busy(yes)`, `playing(yes)`, `trouble({status, isMedia})` after which the playback is dead.
 */
export function openFilm(video, address, at, events) {
  const open = Hls.isSupported() ? openHls : openNative;
  const engine = open(video, address, at, events);
  const stop = new AbortController();
  const on = (name, act) => video.addEventListener(name, act, { signal: stop.signal });
  on("waiting", () => events.busy(true));
  on("seeking", () => events.busy(true));
  for (const name of ["playing", "seeked", "canplay"]) on(name, () => events.busy(false));
  on("play", () => events.playing(true));
  on("pause", () => events.playing(false));
  on("ended", () => events.ended(engine.end()));
  return {
    isLive: at === null,
    date: () => engine.dateAt(video.currentTime),
    hasPicture: () => video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA,
    /** A browser may refuse to play before the reader has touched the page; then it stays paused. */
    play: () => video.play().catch(() => events.playing(false)),
    pause: () => video.pause(),
    setRate: (rate) => (video.playbackRate = rate),
    /** False when the moment is not in this playlist. */
    seek(ms) {
      const position = engine.positionAt(ms);
      if (position === null) return false;
      video.currentTime = position;
      return true;
    },
    keepUp: () => engine.keepUp(),
    close() {
      stop.abort();
      engine.close();
      video.removeAttribute("src");
      video.load();
    },
  };
}

function openHls(video, address, at, events) {
  const hls = new Hls({
    enableWorker: false, // a worker comes from a blob, which the page's policy forbids
    autoStartLoad: false,
    lowLatencyMode: at === null,
    maxLiveSyncPlaybackRate: 1.1,
    liveDurationInfinity: true,
    maxBufferLength: 20,
    maxMaxBufferLength: 40,
    backBufferLength: 60,
  });
  let recoveries = 0;
  const fragments = () => hls.levels[0]?.details?.fragments ?? [];
  const positionAt = (ms) => positionOf(fragments(), ms);

  hls.on(Hls.Events.MANIFEST_PARSED, () => hls.startLoad(at === null ? -1 : (positionAt(at) ?? 0)));
  hls.on(Hls.Events.ERROR, (_, error) => {
    if (!error.fatal) return;
    const isMedia = error.type === Hls.ErrorTypes.MEDIA_ERROR || error.type === Hls.ErrorTypes.MUX_ERROR;
    if (isMedia && recoveries++ < MEDIA_RECOVERIES_MAX) return hls.recoverMediaError();
    events.trouble({ status: error.response?.code ?? 0, isMedia });
  });
  hls.loadSource(address);
  hls.attachMedia(video);

  return {
    dateAt: (position) => dateOf(fragments(), position),
    positionAt: at === null ? () => null : positionAt,
    end: () => endOf(fragments().at(-1)),
    keepUp() {
      const edge = hls.liveSyncPosition;
      if (edge !== null && !video.seeking && edge - video.currentTime > BEHIND_MAX_S) video.currentTime = edge;
    },
    close: () => hls.destroy(),
  };
}

/** Telephones without media sources play HLS themselves. Their time is right up to the first gap. */
function openNative(video, address, at, events) {
  video.src = address;
  const failed = () => events.trouble({ status: 0, isMedia: video.error?.code !== MediaError.MEDIA_ERR_NETWORK });
  video.addEventListener("error", failed, { once: true });
  return {
    dateAt(position) {
      const start = video.getStartDate?.().getTime();
      return Number.isFinite(start) ? start + position * 1000 : at;
    },
    positionAt: () => null,
    end() {
      return this.dateAt(video.duration);
    },
    keepUp() {},
    close: () => video.removeEventListener("error", failed),
  };
}

/** The moment at a position: PROGRAM-DATE-TIME of the fragment there, and what has passed of it. */
function dateOf(fragments, position) {
  const fragment = fragments[Math.max(0, firstWhere(fragments, ({ start }) => start > position) - 1)];
  return fragment?.programDateTime ? fragment.programDateTime + (position - fragment.start) * 1000 : null;
}

/** The position of a moment, or of the first moment after it; null past the end or well before the beginning. */
function positionOf(fragments, ms) {
  const first = fragments[0];
  const fragment = fragments[firstWhere(fragments, (one) => endOf(one) > ms)];
  if (!fragment || ms < first.programDateTime - 1000) return null;
  // A hair behind the seam, so that rounding does not show the picture before it.
  return fragment.start + Math.max(0.01, (ms - fragment.programDateTime) / 1000);
}

const endOf = ({ programDateTime, duration }) => Math.round(programDateTime + duration * 1000);

function firstWhere(list, holds) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}
