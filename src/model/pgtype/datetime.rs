//! Dates and timestamps as Postgres counts and writes them: days and microseconds since 2000-01-01, proleptic
//! Gregorian, 4714 BC to 5874897 (dates) or 294276 (timestamps), and two infinities.

use crate::model::value::Value;

use super::Parsed;

const DAY: i64 = 86_400_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const EPOCH: i64 = 10_957;
/// Julian day 0, 4714-11-24 BC (`datatype/timestamp.h`).
const FIRST_DATE: i64 = -2_451_545;
/// The day after 5874897-12-31.
const END_DATE: i64 = 2_147_483_494 - 2_451_545;
const FIRST_TIMESTAMP: i128 = -211_813_488_000_000_000;
/// 294277-01-01.
const END_TIMESTAMP: i128 = 9_223_371_331_200_000_000;

/// The date, if Postgres has it. `raw`: the extremes are the infinities, not numbers.
pub(super) fn checked_date(days: i64, raw: bool) -> Parsed {
    let infinite = raw && (days == i64::from(i32::MIN) || days == i64::from(i32::MAX));
    match i32::try_from(days) {
        Ok(v) if infinite || (FIRST_DATE..END_DATE).contains(&days) => Ok(Value::Date(v)),
        _ => Err("date out of range".into()),
    }
}

/// The timestamp, if Postgres has it. `raw`: the extremes are the infinities, not numbers.
pub(super) fn checked_timestamp(micros: i128, raw: bool) -> Parsed {
    let infinite = raw && (micros == i128::from(i64::MIN) || micros == i128::from(i64::MAX));
    match i64::try_from(micros) {
        Ok(v) if infinite || (FIRST_TIMESTAMP..END_TIMESTAMP).contains(&micros) => Ok(Value::Timestamp(v)),
        _ => Err("timestamp out of range".into()),
    }
}

/// A date; a time of day after it is ignored, as `date_in` does.
pub(super) fn parse_date(text: &str) -> Parsed {
    match infinity(text) {
        Some(positive) => Ok(Value::Date(if positive { i32::MAX } else { i32::MIN })),
        None => checked_date(parse(text).ok_or("not a date in the form YYYY-MM-DD")?.days, false),
    }
}

/// A timestamp. Without `zoned` a zone in the text is ignored, as `timestamp_in` does; with it, no zone means UTC.
pub(super) fn parse_timestamp(text: &str, zoned: bool) -> Parsed {
    if let Some(positive) = infinity(text) {
        return Ok(Value::Timestamp(if positive { i64::MAX } else { i64::MIN }));
    }
    let stamp = parse(text).ok_or("not a timestamp in the form YYYY-MM-DD HH:MM:SS")?;
    let offset = if zoned { stamp.offset } else { 0 };
    checked_timestamp(i128::from(stamp.days) * i128::from(DAY) + i128::from(stamp.micros - offset * 1_000_000), false)
}

/// The `timestamp without time zone` at which this date starts, as a cast in Postgres has it; `None` when there is none
/// that early or late.
pub fn midnight(days: i32) -> Option<i64> {
    match days {
        i32::MIN => Some(i64::MIN),
        i32::MAX => Some(i64::MAX),
        _ => {
            let micros = i128::from(days) * i128::from(DAY);
            checked_timestamp(micros, false).ok().map(|_| micros as i64)
        }
    }
}

/// `date_out` in the ISO style.
pub(super) fn date_text(days: i32) -> String {
    match days {
        i32::MIN => "-infinity".into(),
        i32::MAX => "infinity".into(),
        _ => {
            let (date, bc) = civil_text(days.into());
            date + bc
        }
    }
}

/// `timestamp_out`, or with `zoned` `timestamptz_out` in UTC, in the ISO style.
pub(super) fn timestamp_text(micros: i64, zoned: bool) -> String {
    match micros {
        i64::MIN => return "-infinity".into(),
        i64::MAX => return "infinity".into(),
        _ => {}
    }
    let (date, bc) = civil_text(micros.div_euclid(DAY));
    let rest = micros.rem_euclid(DAY);
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let mut text = format!("{date} {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    text + if zoned { "+00" } else { "" } + bc
}

fn civil_text(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil_from_days(days + EPOCH);
    let (shown, bc) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{shown:04}-{month:02}-{day:02}"), bc)
}

fn infinity(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "infinity" | "+infinity" => Some(true),
        "-infinity" => Some(false),
        _ => None,
    }
}

/// What a text says: days since 2000-01-01, microseconds of the day, seconds east of UTC.
struct Stamp {
    days: i64,
    micros: i64,
    offset: i64,
}

fn parse(text: &str) -> Option<Stamp> {
    let (text, bc) = split_era(text);
    let (days, rest) = parse_civil(text, bc)?;
    if rest.is_empty() {
        return Some(Stamp { days, micros: 0, offset: 0 });
    }
    let (micros, rest) = parse_time(rest.strip_prefix(['T', 't', ' '])?.trim_start())?;
    Some(Stamp { days, micros, offset: parse_zone(rest.trim_start())? })
}

fn split_era(text: &str) -> (&str, bool) {
    let Some((head, tail)) = text.rsplit_once(' ') else { return (text, false) };
    match tail.to_ascii_uppercase().as_str() {
        "BC" => (head.trim_end(), true),
        "AD" => (head.trim_end(), false),
        _ => (text, false),
    }
}

fn parse_civil(text: &str, bc: bool) -> Option<(i64, &str)> {
    let (year, rest) = digits(text, 4, 7)?;
    let (month, rest) = digits(rest.strip_prefix('-')?, 1, 2)?;
    let (day, rest) = digits(rest.strip_prefix('-')?, 1, 2)?;
    let year = match (year, bc) {
        (0, _) => return None,
        (year, true) => 1 - year,
        (year, false) => year,
    };
    let valid = (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
    valid.then(|| (days_from_civil(year, month, day) - EPOCH, rest))
}

/// Microseconds of the day. `24:00:00` and a leap second are the next day's start, as in Postgres.
fn parse_time(text: &str) -> Option<(i64, &str)> {
    let (hour, rest) = digits(text, 1, 2)?;
    let (minute, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
    let (second, fraction, rest) = match rest.strip_prefix(':') {
        Some(rest) => {
            let (second, rest) = digits(rest, 2, 2)?;
            let (fraction, rest) = parse_fraction(rest)?;
            (second, fraction, rest)
        }
        None => (0, 0, rest),
    };
    if hour > 24 || minute > 59 || second > 60 || (second == 60 && fraction > 0) {
        return None;
    }
    let micros = (hour * 3600 + minute * 60 + second) * 1_000_000 + fraction;
    (hour < 24 || micros == DAY).then_some((micros, rest))
}

/// Rounded to microseconds.
fn parse_fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    let (shown, rest) = rest.split_at_checked(end)?;
    let digit = |i: usize| shown.as_bytes().get(i).map_or(0, |byte| i64::from(byte - b'0'));
    let micros = (0..6).fold(0, |sum, i| sum * 10 + digit(i));
    (end > 0).then_some((micros + i64::from(digit(6) >= 5), rest))
}

/// Seconds east of UTC: nothing, `Z`, `UTC`, `+05`, `+05:30`, `-0530`, `+00:19:32`.
fn parse_zone(text: &str) -> Option<i64> {
    if text.is_empty() || ["z", "utc", "gmt"].iter().any(|name| text.eq_ignore_ascii_case(name)) {
        return Some(0);
    }
    let east = if text.starts_with('+') { 1 } else { -1 };
    let (hour, rest) = digits(text.strip_prefix(['+', '-'])?, 1, 2)?;
    let (minute, rest) = zone_part(rest)?;
    let (second, rest) = zone_part(rest)?;
    let valid = rest.is_empty() && hour <= 15 && minute < 60 && second < 60;
    valid.then_some(east * (hour * 3600 + minute * 60 + second))
}

fn zone_part(text: &str) -> Option<(i64, &str)> {
    if text.is_empty() { Some((0, text)) } else { digits(text.strip_prefix(':').unwrap_or(text), 2, 2) }
}

/// A number of `least` to `most` digits (at most 18, so that it fits).
fn digits(text: &str, least: usize, most: usize) -> Option<(i64, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(count)?;
    if count < least { None } else { Some((number.parse().ok()?, rest)) }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the years before `year`, years starting in March so that the leap day is the last day.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400)
}

/// Days before a month, counted from March = 0: months of 31, 30, 31, 30, 31 days repeat.
fn days_before_month(month: i64) -> i64 {
    (month * 153 + 2) / 5
}

/// 0000-03-01 in days since 1970-01-01.
const MARCH_OF_YEAR_ZERO: i64 = -719_468;

/// Days since 1970-01-01.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    MARCH_OF_YEAR_ZERO + days_before_year(year) + days_before_month(month) + day - 1
}

/// Year (0 is 1 BC), month and day of a day since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days - MARCH_OF_YEAR_ZERO;
    // The mean year gives the year or one beside it; two comparisons settle it.
    let mut year = (days * 400).div_euclid(146_097);
    while days_before_year(year) > days {
        year -= 1;
    }
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let day_of_year = days - days_before_year(year);
    let month = (day_of_year * 5 + 2) / 153;
    let day = day_of_year - days_before_month(month) + 1;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}
