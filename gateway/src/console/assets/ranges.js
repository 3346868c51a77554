// Recorded ranges, as the gateway lists them: [[start_ms, end_ms], …], ascending and apart. Pure.

/** The first recorded moment at or after `ms`, or null. */
export function nextRecorded(ranges, ms) {
  const range = ranges.find(([, end]) => end > ms);
  return range ? Math.max(ms, range[0]) : null;
}

/** Whether anything between two times is recorded, and how much of it. */
export function recordedBetween(ranges, from, to) {
  return ranges.reduce((sum, [start, end]) => sum + Math.max(0, Math.min(end, to) - Math.max(start, from)), 0);
}

/** The list with its last range drawn out to the newest picture, so that a live stream grows between two questions. */
export function grown(ranges, newest, live) {
  const last = ranges.at(-1);
  const joins = live && last && newest > last[1] && newest - last[1] < 15_000;
  return joins ? [...ranges.slice(0, -1), [last[0], newest]] : ranges;
}
