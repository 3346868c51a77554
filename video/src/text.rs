//! Numbers and times into text without allocations.
//!
//! A playlist of a day is 86,400 segments, and is asked for again and again. Only what playlists need is here. Pure.

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Appends a whole number.
pub(crate) fn number(out: &mut String, value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    ascii(out, &digits[at..]);
}

/// Appends the lowest `count` digits, at most 20, with zeros in front.
pub(crate) fn digits(out: &mut String, value: u64, count: usize) {
    let mut digits = [b'0'; 20];
    let count = count.min(digits.len());
    fill(&mut digits[..count], value);
    ascii(out, &digits[..count]);
}

/// Writes the lowest digits of the value, as many as there is room for.
fn fill(place: &mut [u8], value: u64) {
    let mut rest = value;
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// One copy instead of one push a digit: it is what writing a long playlist spends its time on.
fn ascii(out: &mut String, text: &[u8]) {
    out.push_str(std::str::from_utf8(text).unwrap_or_default());
}

/// Appends seconds with five decimals, rounded to the nearest.
pub(crate) fn seconds(out: &mut String, ns: u64) {
    let rounded = ns / 10_000 + u64::from(ns % 10_000 >= 5_000);
    number(out, rounded / 100_000);
    out.push('.');
    digits(out, rounded % 100_000, 5);
}

/// Appends milliseconds since 1970 as `2026-01-31T23:59:59.123Z`. Times outside the years 0 to 9999 become the
/// nearest within.
pub fn date_time(out: &mut String, unix_ms: i64) {
    /// The first millisecond of year 0, and the last of year 9999.
    const YEARS_MS: (i64, i64) = (-62_167_219_200_000, 253_402_300_799_999);
    let unix_ms = unix_ms.clamp(YEARS_MS.0, YEARS_MS.1);
    let (year, month, day) = civil(unix_ms.div_euclid(DAY_MS));
    let ms = unix_ms.rem_euclid(DAY_MS) as u64;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let fields = [
        (0..4, year),
        (5..7, month),
        (8..10, day),
        (11..13, ms / 3_600_000),
        (14..16, ms / 60_000 % 60),
        (17..19, ms / 1000 % 60),
        (20..23, ms % 1000),
    ];
    for (place, value) in fields {
        fill(&mut text[place], value);
    }
    ascii(out, &text);
}

/// Year, month and day of a count of days since 1970: in eras of 400 years that begin in March, a leap day is the
/// last day of its year, and months have a linear formula.
fn civil(days: i64) -> (u64, u64, u64) {
    /// Days from March 1 of year 0 to 1970, and of 400 years.
    const EPOCH: i64 = 719_468;
    const ERA: i64 = 146_097;
    let days = days + EPOCH;
    let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year.max(0) as u64, month as u64, day as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn numbers_and_seconds() {
        assert_eq!(text(|out| number(out, 0)), "0");
        assert_eq!(text(|out| number(out, u64::MAX)), u64::MAX.to_string());
        assert_eq!(text(|out| seconds(out, 999_996_000)), "1.00000");
        assert_eq!(text(|out| seconds(out, 33_366_667)), "0.03337");
        assert_eq!(text(|out| seconds(out, u64::MAX)), "18446744073.70955");
    }

    #[test]
    fn dates_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_785_542_399_999, "2026-07-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
        ];
        for (ms, want) in cases {
            assert_eq!(text(|out| date_time(out, ms)), want);
        }
    }
}
