// Times as people read and type them. They are the camera's, shown in this device's time zone. Pure.

const DAY = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric" });
const SHORT_DAY = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short" });
const two = (number) => String(number).padStart(2, "0");

export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY_MS = 24 * HOUR;

export function clock(ms, withSeconds = true) {
  const date = new Date(ms);
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return withSeconds ? `${minutes}:${two(date.getSeconds())}` : minutes;
}

export const day = (ms) => DAY.format(ms);
export const shortDay = (ms) => SHORT_DAY.format(ms);

/** "14:03:22", with the day in front when it is not the day of `now`. */
export function moment(ms, now) {
  const sameDay = new Date(ms).toDateString() === new Date(now).toDateString();
  return sameDay ? clock(ms) : `${shortDay(ms)}, ${clock(ms)}`;
}

/** "45 s", "5 min 10 s", "2 h 5 min", "3 d 4 h". */
export function span(ms) {
  const seconds = Math.round(Math.abs(ms) / SECOND);
  const parts = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [size, unit] = parts[first];
  const [nextSize, nextUnit] = parts[first + 1] ?? [Infinity, ""];
  const rest = Math.floor((seconds % size) / nextSize);
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${nextUnit}` : ""}`;
}

/** What goes into a datetime-local input, and what comes out of one. */
export function toInput(ms) {
  const date = new Date(ms);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}T${clock(ms)}`;
}

export function fromInput(text) {
  const ms = new Date(text).getTime();
  return Number.isNaN(ms) ? null : ms;
}

const STEPS = [
  5 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
  HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY_MS, 2 * DAY_MS, 7 * DAY_MS,
];

/** Round local times between two times, as few as leave `pixels` between them: [{ms, text, isDay}]. */
export function ticks(from, to, pixelsPerMs, pixels) {
  const step = STEPS.find((size) => size * pixelsPerMs >= pixels) ?? STEPS.at(-1);
  const found = [];
  for (let at = aligned(from, step); at <= to && found.length < 200; at = aligned(at + step * 1.5, step)) {
    if (at < from) continue;
    const date = new Date(at);
    const isDay = date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0;
    found.push({ ms: at, text: isDay ? shortDay(at) : clock(at, step < MINUTE), isDay });
  }
  return found;
}

// The last multiple of a step in local time, whose offset may change on the way.
function aligned(ms, step) {
  const offset = new Date(ms).getTimezoneOffset() * MINUTE;
  const at = Math.floor((ms - offset) / step) * step + offset;
  return at + (new Date(at).getTimezoneOffset() * MINUTE - offset);
}
