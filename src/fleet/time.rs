//! Moments as a bundle writes them: RFC 3339 in UTC, to the second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Seconds since 1970 in UTC, written `2026-12-31T23:59:59Z`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// Not a moment in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a moment in UTC")]
pub struct NotATime(String);

const DAY: u64 = 86_400;

/// Days before the first of March of year 0 in the calendar that is counted in, up to 1970.
const DAYS_TO_1970: u64 = 719_468;

/// Days of four hundred years, after which the calendar repeats.
const ERA: u64 = 146_097;

impl FromStr for Timestamp {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        let wrong = || NotATime(text.chars().take(64).collect());
        let bytes = text.as_bytes();
        let form = b"0000-00-00T00:00:00Z";
        let fits = |(byte, form): (&u8, &u8)| match form {
            b'0' => byte.is_ascii_digit(),
            fixed => byte == fixed,
        };
        if bytes.len() != form.len() || !bytes.iter().zip(form).all(fits) {
            return Err(wrong());
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
        };
        let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
        let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
        if year < 1970 || hour > 23 || minute > 59 || second > 59 || !(1..=12).contains(&month) {
            return Err(wrong());
        }
        let days = days(year, month, day);
        // A day that the month does not have counts as one of the next.
        if civil(days) != (year, month, day) {
            return Err(wrong());
        }
        Ok(Self(days * DAY + hour * 3600 + minute * 60 + second))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0 / DAY);
        let rest = self.0 % DAY;
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Days from 1970 to a day of the Gregorian calendar. Years are counted from March on, so that the day that
/// only some of them have is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day.saturating_sub(1);
    era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_1970
}

/// The day of the calendar so many days after 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days.saturating_add(DAYS_TO_1970);
    let (era, of_era) = (days / ERA, days % ERA);
    let leap = of_era / 1460 + of_era / (ERA - 1);
    let year_of_era = (of_era - leap + of_era / 36_524) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_seven_hundred_years_is_written_and_read_back() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..256_000 {
            assert_eq!(civil(number), (year, month, day));
            assert_eq!(days(year, month, day), number);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (month, day) if day == last => (year, month + 1, 1),
                (month, day) => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn moments_are_read_to_the_second_and_nothing_else_is() {
        let at = |text: &str| text.parse::<Timestamp>();
        assert_eq!(at("1970-01-01T00:00:00Z").unwrap(), Timestamp(0));
        assert_eq!(at("2026-11-26T17:47:20Z").unwrap(), Timestamp(1_795_715_240));
        assert_eq!(at("2026-11-26T17:47:20Z").unwrap().to_string(), "2026-11-26T17:47:20Z");
        for text in [
            "",
            "2026-11-26",
            "2026-11-26T17:47:20",
            "2026-11-26T17:47:20+01:00",
            "2026-11-26 17:47:20Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:60Z",
            "２026-01-01T00:00:0Z",
        ] {
            assert!(at(text).is_err(), "{text:?}");
        }
    }
}
