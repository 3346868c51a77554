// The pure parts of the player page, without a browser.
//
//     TZ=Europe/Berlin node --test player_parts.mjs
//
// Berlin has the two days of the year on which an hour is missing or there twice.
import assert from "node:assert/strict";
import test from "node:test";
import { grown, nextRecorded, recordedBetween } from "../../gateway/src/console/assets/ranges.js";
import { DAY_MS, HOUR, MINUTE, clock, fromInput, span, ticks, toInput } from "../../gateway/src/console/assets/times.js";

const RANGES = [[1000, 2000], [5000, 9000]];

test("the next recorded moment is the one asked for, the next beginning, or none", () => {
  assert.deepEqual([0, 1500, 2000, 8999, 9000].map((ms) => nextRecorded(RANGES, ms)), [1000, 1500, 5000, 8999, null]);
});

test("what is recorded between two times is counted without its gaps", () => {
  assert.equal(recordedBetween(RANGES, 1500, 6000), 1500);
  assert.equal(recordedBetween(RANGES, 2000, 5000), 0);
});

test("a live stream's last range grows, over no gap", () => {
  assert.deepEqual(grown(RANGES, 12_000, true).at(-1), [5000, 12_000]);
  assert.deepEqual(grown(RANGES, 12_000, false), RANGES);
  assert.deepEqual(grown(RANGES, 60_000, true), RANGES);
  assert.deepEqual(grown([], 60_000, true), []);
});

test("lengths are told in two units at most", () => {
  const told = [0, 400, 45_000, 310_000, HOUR, HOUR + 5 * MINUTE + 3000, 3 * DAY_MS + 4 * HOUR].map(span);
  assert.deepEqual(told, ["0 s", "0 s", "45 s", "5 min 10 s", "1 h", "1 h 5 min", "3 d 4 h"]);
});

test("what is typed is what was shown", () => {
  for (const ms of [1_712_345_678_000, 1_743_296_399_000, 1_700_000_000_000]) assert.equal(fromInput(toInput(ms)), ms);
  assert.equal(fromInput("soon"), null);
});

// 2025-03-30: 02:00 does not exist; 2025-10-26: 02:00 exists twice.
for (const [name, noon] of [["shorter", "2025-03-30T12:00:00"], ["longer", "2025-10-26T12:00:00"], ["common", "2025-06-01T12:00:00"]]) {
  test(`the scale of a ${name} day has round local times, ascending, and ends`, () => {
    const middle = new Date(noon).getTime();
    for (const length of [MINUTE, HOUR, 6 * HOUR, DAY_MS, 7 * DAY_MS, 31 * DAY_MS]) {
      const [from, to] = [middle - length / 2, middle + length / 2];
      const found = ticks(from, to, 1000 / length, 76);
      assert.ok(found.length >= 2 && found.length <= 16, `${found.length} for ${span(length)}`);
      found.forEach(({ ms }, index) => {
        assert.ok(ms >= from && ms <= to && (index === 0 || ms > found[index - 1].ms));
        if (length >= 6 * HOUR) assert.match(clock(ms), /:(00|30):00$/);
        if (length > 7 * DAY_MS) assert.match(clock(ms), /^00:00:00$/);
      });
    }
  });
}
