//! Schedules in the form of cron(5), in UTC, as `CronJobs` of Kubernetes take them.
//!
//! Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday), each `*`, a
//! number, a range `1-5`, a list `1,3`, with a step `*/15`; months and days also by name; or `@hourly`,
//! `@daily`, `@weekly`, `@monthly`, `@yearly`. As in cron(5), a day matches when either of two restricted
//! day fields does.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// How far ahead a next time is looked for: 29 February comes every eight years at the latest.
const HORIZON_DAYS: u32 = 366 * 9;

/// A schedule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Day of the month, and day of the week, are restricted.
    restricted: (bool, bool),
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// Says which field is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let expanded = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = expanded.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!(
                "`{text}` has {} fields instead of 5: minute, hour, day of month, month, day of week",
                fields.len()
            ));
        };
        let read = |what: &str, field: &str, range: (u32, u32), names: (&[&str], u32)| {
            bits(field, range, names).map_err(|why| format!("the {what} `{field}` of `{text}`: {why}"))
        };
        let weekdays = read("day of the week", weekday, (0, 7), (&WEEKDAYS, 0))?;
        let schedule = Self {
            minutes: read("minute", minute, (0, 59), (&[], 0))?,
            hours: read("hour", hour, (0, 23), (&[], 0))?,
            days: read("day of the month", day, (1, 31), (&[], 0))?,
            months: read("month", month, (1, 12), (&MONTHS, 1))?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            restricted: (!day.starts_with('*'), !weekday.starts_with('*')),
        };
        match schedule.after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(format!("`{text}` never comes")),
        }
    }

    /// The first time after `now`.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        let start = now.to_zoned(TimeZone::UTC).datetime();
        let mut day = start.date();
        let earliest =
            u32::from(start.hour().unsigned_abs()) * 60 + u32::from(start.minute().unsigned_abs()) + 1;
        let mut from = earliest;
        for _ in 0..HORIZON_DAYS {
            if self.is_day(day)
                && let Some(minute) = (from..24 * 60).find(|minute| self.is_minute(*minute))
            {
                let time = day.at(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0);
                return Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp());
            }
            day = day.tomorrow().ok()?;
            from = 0;
        }
        None
    }

    /// The last time after `since` up to `now`.
    pub fn last_due(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        // Not one after the other from long ago: a schedule of every minute that was suspended for years.
        let hour = jiff::SignedDuration::from_hours(1);
        let mut window = hour;
        loop {
            let begin = now.checked_sub(window).ok().filter(|begin| *begin > since).unwrap_or(since);
            let mut last = None;
            let mut at = begin;
            while let Some(next) = self.after(at).filter(|next| *next <= now) {
                last = Some(next);
                at = next;
            }
            if last.is_some() || begin == since {
                return last;
            }
            window = window.checked_mul(24)?;
        }
    }

    fn is_minute(&self, minute: u32) -> bool {
        self.hours & (1 << (minute / 60)) != 0 && self.minutes & (1 << (minute % 60)) != 0
    }

    fn is_day(&self, day: Date) -> bool {
        let has = |bits: u64, number: i8| bits & (1 << number.unsigned_abs()) != 0;
        let of_month = has(self.days, day.day());
        let of_week = has(self.weekdays, day.weekday().to_sunday_zero_offset());
        has(self.months, day.month())
            && match self.restricted {
                (true, true) => of_month || of_week,
                _ => of_month && of_week,
            }
    }
}

/// The numbers that a field names, as bits.
fn bits(field: &str, (low, high): (u32, u32), names: (&[&str], u32)) -> Result<u64, String> {
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        let named = names.0.iter().position(|name| *name == lower);
        let value = match named {
            Some(index) => Some(u32::try_from(index).unwrap_or(0) + names.1),
            None => text.parse().ok(),
        };
        let value = value.ok_or_else(|| format!("`{text}` is no number"))?;
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(format!("{value} is not within {low} to {high}"))
        }
    };
    let mut out = 0;
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, 1),
            Some((range, step)) => {
                let step = step.parse().ok().filter(|step: &u32| *step > 0);
                (range, step.ok_or_else(|| format!("the step of `{part}` is no number above 0"))?)
            }
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((first, last)) => (number(first)?, number(last)?),
            None if part.contains('/') => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(format!("`{range}` ends before it begins"));
        }
        for value in (first..=last).step_by(step as usize) {
            out |= 1 << value;
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_time_is_the_first_that_every_field_allows() {
        for (schedule, now, next) in [
            ("*/15 * * * *", "2026-11-29T22:07:30Z", "2026-11-29T22:15:00Z"),
            ("0 2 * * *", "2026-11-29T02:00:00Z", "2026-11-30T02:00:00Z"),
            ("30 1 1 jan *", "2026-11-29T00:00:00Z", "2027-01-01T01:30:00Z"),
            ("0 0 * * sun", "2026-11-29T00:00:00Z", "2026-12-06T00:00:00Z"),
            ("0 0 * * 7", "2026-11-28T00:00:00Z", "2026-11-29T00:00:00Z"),
            ("0 0 13 * fri", "2026-11-29T00:00:00Z", "2026-12-04T00:00:00Z"),
            ("0 12 29 2 *", "2026-11-29T00:00:00Z", "2028-02-29T12:00:00Z"),
            ("5/20 22-23 * * 1-5", "2026-11-29T00:00:00Z", "2026-11-30T22:05:00Z"),
            ("@monthly", "2026-11-29T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("59 23 31 12 *", "2026-12-31T23:58:59.9Z", "2026-12-31T23:59:00Z"),
        ] {
            let found = Schedule::parse(schedule).unwrap().after(at(now));
            assert_eq!(found, Some(at(next)), "{schedule} after {now}");
        }
    }

    #[test]
    fn only_the_last_time_that_was_missed_is_due() {
        let schedule = Schedule::parse("0 2 * * *").unwrap();
        let due = |since, now| schedule.last_due(at(since), at(now));
        assert_eq!(due("2026-11-20T00:00:00Z", "2026-11-29T22:00:00Z"), Some(at("2026-11-29T02:00:00Z")));
        assert_eq!(due("2026-11-29T02:00:00Z", "2026-11-29T22:00:00Z"), None);
        assert_eq!(due("2026-11-29T01:59:59Z", "2026-11-29T02:00:00Z"), Some(at("2026-11-29T02:00:00Z")));
        let often = Schedule::parse("* * * * *").unwrap();
        let now = at("2026-11-29T22:00:30Z");
        assert_eq!(often.last_due(at("2001-01-01T00:00:00Z"), now), Some(at("2026-11-29T22:00:00Z")));
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_field() {
        for (text, part) in [
            ("* * * *", "4 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day of the month"),
            ("* * * mai *", "month"),
            ("* * * * 1-", "day of the week"),
            ("*/0 * * * *", "step"),
            ("5-1 * * * *", "ends before"),
            ("0 0 31 2 *", "never"),
            ("", "0 fields"),
        ] {
            let wrong = Schedule::parse(text).unwrap_err();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }
}
