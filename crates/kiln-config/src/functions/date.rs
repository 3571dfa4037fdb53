//! Dates, in the form of RFC 3339. There is no clock here: "now" is the date of the lock.
//!
//! A date library (jiff) was tried against it and not taken: what is long here is Terraform's own letters of `formatdate` and what
//! is said about a wrong one, which no library has; from one, only the count of days would come, which kiln-model has in 40 lines.

use kiln_model::{date_of, days_of};

use super::Kind::Text;
use super::{Arguments, Fault, Function, fault, function};
use crate::Problem;
use crate::reader::Reader;
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "formatdate",
        &[("format", Text), ("date", Text)],
        formatdate,
    ),
    function("timeadd", &[("date", Text), ("duration", Text)], timeadd),
    function("timecmp", &[("date", Text), ("other", Text)], |_, a| {
        let (one, other) = (read(a, 0)?.instant(), read(a, 1)?.instant());
        Ok(Value::Number(match one.cmp(&other) {
            std::cmp::Ordering::Less => -1.0,
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Greater => 1.0,
        }))
    }),
    function("timestamp", &[], |reader, a| match reader.outside.date() {
        Some(seconds) => Ok(Value::String(Date::at(seconds, 0).text())),
        None => {
            reader.report(
                Problem::Unsupported {
                    what: "`timestamp` without a lock".to_owned(),
                },
                a.span.clone(),
                "it is the date of kiln.lock, which is not there",
                "bake once without it, or give the date with a variable",
            );
            Err(Fault::Reported)
        }
    }),
];

/// A date and time as it is written, with its distance from UTC in seconds.
struct Date {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    offset: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

impl Date {
    fn at(instant: i64, offset: i64) -> Self {
        let local = instant + offset;
        let (year, month, day) = date_of(local.div_euclid(86_400));
        let of_day = local.rem_euclid(86_400);
        Self {
            year,
            month,
            day,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            offset,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let part = text.get(range)?;
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| part.parse().ok())?
        };
        let is_one_of =
            |at: usize, marks: &[u8]| text.as_bytes().get(at).is_some_and(|b| marks.contains(b));
        let is_laid_out = is_one_of(4, b"-")
            && is_one_of(7, b"-")
            && is_one_of(10, b"T")
            && is_one_of(13, b":")
            && is_one_of(16, b":");
        if !is_laid_out {
            return None;
        }
        let zone = text.get(19..)?;
        let offset = match zone {
            "Z" => 0,
            _ => {
                let sign = match zone.as_bytes().first()? {
                    b'+' => 1,
                    b'-' => -1,
                    _ => return None,
                };
                if zone.len() != 6 || !is_one_of(22, b":") {
                    return None;
                }
                let (hours, minutes) = (number(20..22)?, number(23..25)?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                sign * (hours * 3600 + minutes * 60)
            }
        };
        let date = Self {
            year: number(0..4)?,
            month: number(5..7)?,
            day: number(8..10)?,
            hour: number(11..13)?,
            minute: number(14..16)?,
            second: number(17..19)?,
            offset,
        };
        let real = (1..=12).contains(&date.month)
            && date_of(days_of(date.year, date.month, date.day))
                == (date.year, date.month, date.day)
            && date.hour < 24
            && date.minute < 60
            && date.second < 60;
        real.then_some(date)
    }

    fn instant(&self) -> i64 {
        days_of(self.year, self.month, self.day) * 86_400
            + self.hour * 3600
            + self.minute * 60
            + self.second
            - self.offset
    }

    fn zone(&self, colon: bool) -> String {
        let sign = if self.offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (self.offset.abs() / 3600, self.offset.abs() / 60 % 60);
        let colon = if colon { ":" } else { "" };
        format!("{sign}{hours:02}{colon}{minutes:02}")
    }

    fn text(&self) -> String {
        let zone = if self.offset == 0 {
            "Z".to_owned()
        } else {
            self.zone(true)
        };
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{zone}",
            self.year, self.month, self.day, self.hour, self.minute, self.second
        )
    }
}

fn read(a: &Arguments, index: usize) -> Result<Date, Fault> {
    match Date::parse(a.text(index)) {
        Some(date) => Ok(date),
        None => fault(
            index,
            format!("`{}`", a.text(index)),
            "a date and time as in RFC 3339",
            "write it as \"2026-01-31T12:00:00Z\"",
        ),
    }
}

/// As Go's durations: `1h30m`, `-5s`, `1.5h`; whole seconds.
fn seconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let factor = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        rest = &rest[letters..];
        total += number * factor;
    }
    // Ten thousand years: what a date can have.
    (total < 3.2e11).then_some((sign * total).floor() as i64)
}

fn timeadd(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let date = read(a, 0)?;
    let Some(seconds) = seconds(a.text(1)) else {
        return fault(
            1,
            format!("`{}`", a.text(1)),
            "a duration in h, m, s or ms",
            "write \"1h30m\"",
        );
    };
    let sum = Date::at(date.instant() + seconds, date.offset);
    if (0..=9999).contains(&sum.year) {
        Ok(Value::String(sum.text()))
    } else {
        fault(
            1,
            "what leaves the years 0 to 9999",
            "a smaller duration",
            "write a smaller one",
        )
    }
}

fn formatdate(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let date = read(a, 1)?;
    let format: Vec<char> = a.text(0).chars().collect();
    let mut made = String::new();
    let mut at = 0;
    while at < format.len() {
        let letter = format[at];
        if letter == '\'' {
            // Text in quotes, in which two quotes are one.
            at += 1;
            loop {
                match (format.get(at), format.get(at + 1)) {
                    (Some('\''), Some('\'')) => {
                        made.push('\'');
                        at += 2;
                    }
                    (Some('\''), _) => {
                        at += 1;
                        break;
                    }
                    (Some(other), _) => {
                        made.push(*other);
                        at += 1;
                    }
                    (None, _) => {
                        return fault(
                            0,
                            "a quote that is not closed",
                            "a format",
                            "close the quote",
                        );
                    }
                }
            }
            continue;
        }
        if !letter.is_ascii_alphabetic() {
            made.push(letter);
            at += 1;
            continue;
        }
        let count = format[at..].iter().take_while(|c| **c == letter).count();
        at += count;
        let weekday = DAYS[date_index(&date)];
        let month = MONTHS[(date.month - 1).clamp(0, 11) as usize];
        let twelve = if date.hour % 12 == 0 {
            12
        } else {
            date.hour % 12
        };
        let half = if date.hour < 12 { "am" } else { "pm" };
        made.push_str(&match (letter, count) {
            ('Y', 4) => format!("{:04}", date.year),
            ('Y', 2) => format!("{:02}", date.year % 100),
            ('M', 4) => month.to_owned(),
            ('M', 3) => month[..3].to_owned(),
            ('M', 2) => format!("{:02}", date.month),
            ('M', 1) => date.month.to_string(),
            ('D', 2) => format!("{:02}", date.day),
            ('D', 1) => date.day.to_string(),
            ('E', 4) => weekday.to_owned(),
            ('E', 3) => weekday[..3].to_owned(),
            ('h', 2) => format!("{:02}", date.hour),
            ('h', 1) => date.hour.to_string(),
            ('H', 2) => format!("{twelve:02}"),
            ('H', 1) => twelve.to_string(),
            ('A', 2) => half.to_uppercase(),
            ('a', 2) => half.to_owned(),
            ('m', 2) => format!("{:02}", date.minute),
            ('m', 1) => date.minute.to_string(),
            ('s', 2) => format!("{:02}", date.second),
            ('s', 1) => date.second.to_string(),
            ('Z', 5) => date.zone(true),
            ('Z', 4) => date.zone(false),
            ('Z', 3) if date.offset == 0 => "UTC".to_owned(),
            ('Z', 3) => date.zone(false),
            ('Z', 1) if date.offset == 0 => "Z".to_owned(),
            ('Z', 1) => date.zone(true),
            _ => {
                let found = format!("`{}`", letter.to_string().repeat(count.min(8)));
                return fault(
                    0,
                    found,
                    "YYYY, YY, MMMM, MMM, MM, M, DD, D, EEEE, EEE, hh, h, HH, H, AA, aa, mm, m, ss, s, ZZZZZ to Z",
                    "put letters that are meant as such in single quotes",
                );
            }
        });
    }
    Ok(Value::String(made))
}

fn date_index(date: &Date) -> usize {
    days_of(date.year, date.month, date.day).rem_euclid(7) as usize
}
