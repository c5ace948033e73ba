//! Times of the week at which something happens: `verify-schedule`.

use std::fmt;

use super::options::{Field, Value};

/// Days as they are written, Monday first.
pub const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// What is expected where a schedule stands.
pub const FORM: &str =
    "days and a local time, as \"Sun 03:00\", \"Mon,Wed 04:30\" or \"daily 03:00\"";

/// Some days of the week, at one local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Monday first.
    days: [bool; 7],
    pub hour: u8,
    pub minute: u8,
}

/// Which part of a schedule cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleFault {
    Form,
    /// This is no day.
    Day(String),
    /// This is no time of day.
    Time(String),
}

impl Schedule {
    /// Reads `Sun 03:00`, `Mon,Wed 04:30`, `daily 03:00`; days in any case, in full or by their
    /// first three letters.
    pub fn parse(text: &str) -> Result<Schedule, ScheduleFault> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [days, time] = words.as_slice() else {
            return Err(ScheduleFault::Form);
        };
        let days = match days.eq_ignore_ascii_case("daily") {
            true => [true; 7],
            false => some_days(days)?,
        };
        let fault = || ScheduleFault::Time((*time).to_owned());
        let (hour, minute) = time.split_once(':').ok_or_else(fault)?;
        let number = |digits: &str, most: u8, lengths: std::ops::RangeInclusive<usize>| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let fits = plain && lengths.contains(&digits.len());
            let number = digits.parse::<u8>().ok().filter(|_| fits);
            number.filter(|number| *number <= most).ok_or_else(fault)
        };
        Ok(Schedule {
            days,
            hour: number(hour, 23, 1..=2)?,
            minute: number(minute, 59, 2..=2)?,
        })
    }

    /// Whether it is on this day, 0 = Monday.
    pub fn is_on(&self, day: usize) -> bool {
        self.days.get(day).copied().unwrap_or(false)
    }
}

fn some_days(text: &str) -> Result<[bool; 7], ScheduleFault> {
    let mut days = [false; 7];
    for word in text.split(',') {
        let known = FULL_DAYS.iter().position(|full| {
            let short = word.eq_ignore_ascii_case(&full[..3]);
            short || word.eq_ignore_ascii_case(full)
        });
        let day = known.ok_or_else(|| ScheduleFault::Day(word.to_owned()))?;
        days[day] = true;
    }
    Ok(days)
}

/// The words that name a day, for suggestions.
pub const FULL_DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = DAYS.iter().zip(self.days).filter(|(_, on)| *on);
        let named: Vec<&str> = named.map(|(day, _)| *day).collect();
        let days = match named.len() {
            7 => "daily".to_owned(),
            _ => named.join(","),
        };
        write!(f, "{days} {:02}:{:02}", self.hour, self.minute)
    }
}

impl Field for Option<Schedule> {
    fn read(value: Option<&Value>) -> Option<Schedule> {
        match value {
            Some(Value::Text(text)) => Schedule::parse(text).ok(),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        self.map(|schedule| Value::Text(schedule.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_times_are_read_and_written_alike() {
        for (text, written) in [
            ("Sun 03:00", "Sun 03:00"),
            ("  daily   3:05 ", "daily 03:05"),
            ("Mon,Wed 04:30", "Mon,Wed 04:30"),
            ("wednesday,MON,mon 23:59", "Mon,Wed 23:59"),
            ("Mon,Tue,Wed,Thu,Fri,Sat,Sun 00:00", "daily 00:00"),
        ] {
            let schedule = Schedule::parse(text).expect(text);
            assert_eq!(schedule.to_string(), written);
            assert_eq!(Schedule::parse(written), Ok(schedule));
        }
        let sunday = Schedule::parse("Sun 03:00").expect("parses");
        assert!(sunday.is_on(6) && !sunday.is_on(0) && !sunday.is_on(7));
    }

    #[test]
    fn what_is_no_schedule_is_refused_for_what_is_wrong_with_it() {
        for text in ["", "03:00", "Sun", "Sun 03:00 04:00", "Mon, Wed 04:30"] {
            assert_eq!(Schedule::parse(text), Err(ScheduleFault::Form), "{text}");
        }
        for (text, day) in [("Snu 03:00", "Snu"), ("Mon,,Wed 1:00", ""), ("1 3:00", "1")] {
            let fault = ScheduleFault::Day(day.to_owned());
            assert_eq!(Schedule::parse(text), Err(fault), "{text}");
        }
        for time in [
            "24:00", "3", "3:60", "3:5", "03:00:00", "-3:00", "+3:00", "three:00",
        ] {
            let text = format!("Sun {time}");
            let fault = ScheduleFault::Time(time.to_owned());
            assert_eq!(Schedule::parse(&text), Err(fault), "{text}");
        }
    }
}
