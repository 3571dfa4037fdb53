//! Dates as HTTP and Debian's archive write them (RFC 9110, IMF-fixdate; RFC 5322).

use kiln_model::days_of;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`; the zone is always that.
pub fn seconds_of(date: &str) -> Option<i64> {
    let words: Vec<_> = date.split_whitespace().collect();
    let [_, day, month, year, time, ..] = words[..] else {
        return None;
    };
    let number = |text: &str, most: i64| {
        let number: i64 = text.parse().ok()?;
        (0..=most).contains(&number).then_some(number)
    };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let days = days_of(number(year, 9999)?, month, number(day, 31)?);
    let mut clock = time.split(':');
    let mut next = |most| number(clock.next()?, most);
    let (hour, minute, second) = (next(23)?, next(59)?, next(60)?);
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_servers_are_read() {
        for (date, expected) in [
            ("Thu, 01 Jan 1970 00:00:01 UTC", Some(1)),
            ("Thu, 29 Feb 2024 23:59:59 UTC", Some(1_709_251_199)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sun, 06 Nov 9223372036854775807 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 99999999999999999:0:0 GMT", None),
            ("yesterday", None),
        ] {
            assert_eq!(seconds_of(date), expected, "{date}");
        }
    }
}
