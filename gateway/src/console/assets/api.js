// What the page asks the gateway for, and how a refusal reaches the reader: as the gateway's own sentence.

/** A refusal. `status` is 0 when no answer came at all. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export const NO_ANSWER = "The gateway does not answer. Check that it runs and that this device reaches it.";
const SENTENCE_MAX = 300;

/** Called when the gateway wants the token. */
export const locked = new EventTarget();

const base = (name) => `/video/${encodeURIComponent(name)}`;
const whole = (ms) => Math.round(ms);

export const url = {
  live: (name, low) => `${base(name)}/live.m3u8${low ? "" : "?ll=0"}`,
  playlist: (name, from, to) => `${base(name)}/playlist.m3u8?from=${whole(from)}&to=${whole(to)}`,
  clip: (name, from, to) => `${base(name)}/clip.mp4?from=${whole(from)}&to=${whole(to)}`,
  image: (name, at) => `${base(name)}/image.jpg${at === null ? "" : `?at=${whole(at)}`}`,
};

/** `{streams, ahead}`: how far the gateway's clock is ahead of this device's, in ms. */
export async function streams() {
  const asked = Date.now();
  const answer = await (await ask("/video/streams")).json();
  return { streams: answer.streams, ahead: answer.now_ms - (asked + Date.now()) / 2 };
}

export async function timeline(name, from, to) {
  return (await ask(`${base(name)}/timeline?from=${whole(from)}&to=${whole(to)}`)).json();
}

/** `{blob, at}`; `at` is the picture's own time where the gateway tells it. */
export async function image(name, at, signal) {
  const response = await ask(url.image(name, at), { signal });
  const told = Number(response.headers.get("x-headwater-time-ms"));
  return { blob: await response.blob(), at: told || at };
}

export async function mark(name, from_ms, to_ms, text) {
  const body = JSON.stringify({ from_ms: whole(from_ms), to_ms: whole(to_ms), name: text });
  await ask(`${base(name)}/marks`, { method: "POST", headers: { "content-type": "application/json" }, body });
}

/** Throws what the gateway has against an address, and fetches nothing of it. */
export async function check(address) {
  const head = await fetch(address, { method: "HEAD", cache: "no-store" }).catch(() => null);
  if (head?.ok || head?.status === 405) return;
  const gone = new AbortController();
  await ask(address, { signal: gone.signal });
  gone.abort();
}

/** True when the token was right. */
export async function signIn(token) {
  const answer = await fetch("/login", { method: "POST", body: new URLSearchParams({ token }), redirect: "manual" });
  return answer.ok || answer.type === "opaqueredirect";
}

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused(0, NO_ANSWER);
  }
  if (response.ok) return response;
  if (response.status === 401) locked.dispatchEvent(new Event("locked"));
  throw new Refused(response.status, await sentence(response));
}

async function sentence(response) {
  const isText = response.headers.get("content-type")?.startsWith("text/plain");
  const text = isText ? (await response.text()).trim().slice(0, SENTENCE_MAX) : "";
  if (!text) return `The gateway answered with error ${response.status}. Its log says more.`;
  const capital = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
