//! Values of options: from words to numbers in the finest unit, layered (`common`, resource,
//! volume), into the typed structures of the model, and back to words.

use std::collections::BTreeMap;
use std::time::Duration;

use super::after::After;
use super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES, shown};
use super::schedule::{DAYS, FORM, FULL_DAYS, Schedule, ScheduleFault};
use super::schema::{self, Kind, Section, Spec, Support, Unit};
use super::source::{SourceMap, Span};
use super::syntax::{Item, Word};

/// A value that fits its [`Spec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Flag(bool),
    /// In the finest unit of its kind: bytes, milliseconds or a count.
    Number(u64),
    /// A choice in the spelling of the schema, or a text.
    Text(String),
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Setting {
    pub value: Value,
    pub span: Span,
}

/// What one section sets, by the option's name.
pub type Settings = BTreeMap<&'static str, Setting>;

/// The default of an option; `None` = unset.
pub fn default_value(spec: &Spec) -> Option<Value> {
    match spec.kind {
        Kind::Flag { default } => Some(Value::Flag(default)),
        Kind::Number { unit, default, .. } => {
            default.map(|value| Value::Number(value.saturating_mul(unit.factor())))
        }
        Kind::Choice(words) => words.first().map(|word| Value::Text((*word).to_owned())),
        // A text that may have only one value has that one.
        Kind::Text { .. } => match spec.support {
            Support::Only(values) => values.first().map(|word| Value::Text((*word).to_owned())),
            _ => None,
        },
        Kind::Name(_) | Kind::Schedule | Kind::After | Kind::Words => None,
    }
}

/// A value as it is written: the reverse of [`parse_option`]. Numbers in the option's own unit
/// where they are a multiple of it.
pub fn write_value(spec: &Spec, value: &Value) -> String {
    match (value, spec.kind) {
        (Value::Flag(true), _) => "yes".to_owned(),
        (Value::Flag(false), _) => "no".to_owned(),
        (Value::Number(number), Kind::Number { unit, .. }) => {
            if unit == Unit::Milliseconds {
                duration_text(*number)
            } else if number % unit.factor() == 0 {
                (number / unit.factor()).to_string()
            } else if unit.is_time() {
                format!("{number}ms")
            } else {
                // Only sizes in sectors are finer than KiB.
                format!("{}s", number / Unit::Sectors.factor())
            }
        }
        (Value::Number(number), _) => number.to_string(),
        (Value::Text(text), Kind::Text { .. } | Kind::Schedule) => super::lexer::quote_always(text),
        (Value::Text(text), _) => text.clone(),
    }
}

/// Milliseconds as a time is written.
pub fn duration_text(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        format!("{}s", millis / 1000)
    } else {
        format!("{millis}ms")
    }
}

/// Checks what was written for an option. `Ok(None)`: accepted, without effect. A warning is
/// pushed to `warnings`.
pub fn parse_option(
    sources: &SourceMap,
    item: &Item,
    found: schema::Found,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Option<Setting>, Diagnostic> {
    let spec = found.spec;
    let fail = |kind, span| Err(Diagnostic::new(kind).at(sources.locate(span)));
    if spec.support == Support::NotYet {
        let what = item.head.text.clone();
        return fail(DiagnosticKind::NotSupported { what }, item.head.span);
    }
    if item.body.is_some() {
        let word = shown(&item.head.text);
        return fail(DiagnosticKind::NotSection { word }, item.head.span);
    }
    if spec.kind == Kind::Words {
        return Ok(None);
    }
    if let Some(extra) = item.args.get(1) {
        return fail(
            DiagnosticKind::ExtraWord {
                option: spec.name.to_owned(),
                word: shown(&extra.text),
            },
            extra.span,
        );
    }
    let context = Context {
        sources,
        item,
        spec,
    };
    let value = context.value(item.args.first(), found.negated, warnings)?;
    match spec.support {
        Support::NoEffect(_) => Ok(None),
        Support::Only(works) if !works.contains(&plain(&value).as_str()) => fail(
            DiagnosticKind::ValueNotSupported {
                option: spec.name.to_owned(),
                value: shown(&plain(&value)),
                works: works.join(" or "),
            },
            item.span(),
        ),
        _ => Ok(Some(Setting {
            value,
            span: item.span(),
        })),
    }
}

/// A value for comparison with the words of the schema.
fn plain(value: &Value) -> String {
    match value {
        Value::Flag(true) => "yes".to_owned(),
        Value::Flag(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.clone(),
    }
}

struct Context<'a> {
    sources: &'a SourceMap,
    item: &'a Item,
    spec: &'static Spec,
}

impl Context<'_> {
    fn fail(&self, kind: DiagnosticKind, word: &Word) -> Diagnostic {
        Diagnostic::new(kind).at(self.sources.locate(word.span))
    }

    fn bad(&self, word: &Word, expected: &str) -> Diagnostic {
        self.bad_part(word, shown(&word.text), expected)
    }

    /// As `bad`, where a part of the word is what is wrong.
    fn bad_part(&self, word: &Word, value: String, expected: &str) -> Diagnostic {
        let kind = DiagnosticKind::BadValue {
            option: self.spec.name.to_owned(),
            value,
            expected: expected.to_owned(),
        };
        self.fail(kind, word)
    }

    fn value(
        &self,
        word: Option<&Word>,
        negated: bool,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Value, Diagnostic> {
        if negated {
            return match word {
                None => Ok(Value::Flag(false)),
                Some(word) => Err(self.fail(
                    DiagnosticKind::ExtraWord {
                        option: shown(&self.item.head.text),
                        word: shown(&word.text),
                    },
                    word,
                )),
            };
        }
        let Some(word) = word else {
            return match self.spec.kind {
                Kind::Flag { .. } => Ok(Value::Flag(true)),
                kind => Err(self.fail(
                    DiagnosticKind::MissingValue {
                        option: self.spec.name.to_owned(),
                        needs: needs(kind),
                    },
                    &self.item.head,
                )),
            };
        };
        match self.spec.kind {
            Kind::Flag { .. } => match word.text.as_str() {
                "yes" => Ok(Value::Flag(true)),
                "no" => Ok(Value::Flag(false)),
                _ => Err(self.bad(word, "`yes` or `no`")),
            },
            Kind::Number { .. } => self.number(word, warnings),
            Kind::Choice(words) | Kind::Name(words) => self.choice(word, words),
            Kind::Text { max } if word.text.chars().count() > max => {
                let option = self.spec.name.to_owned();
                Err(self.fail(DiagnosticKind::TooLong { option, max }, word))
            }
            Kind::Text { .. } if word.text.is_empty() => Err(self.bad(word, "a text")),
            Kind::Schedule => self.schedule(word),
            Kind::After => match After::parse(&word.text) {
                Some(after) => Ok(Value::Text(after.to_string())),
                None => Err(self.bad(word, "RESOURCE or RESOURCE/VOLUME")),
            },
            Kind::Text { .. } | Kind::Words => Ok(Value::Text(word.text.clone())),
        }
    }

    fn number(&self, word: &Word, warnings: &mut Vec<Diagnostic>) -> Result<Value, Diagnostic> {
        let Kind::Number {
            unit,
            min,
            max,
            clamp,
            ..
        } = self.spec.kind
        else {
            return Err(self.bad(word, "a number"));
        };
        let number = match parse_number(&word.text, unit) {
            Ok(number) => number,
            Err(NumberFault::Form) if unit.is_time() => {
                return Err(self.bad(word, "a number, with `ms`, `s`, `m` or `h` if need be"));
            }
            Err(NumberFault::Form) => {
                return Err(self.bad(word, "a number, with K, M or G if need be"));
            }
            // Too large for any range.
            Err(NumberFault::Overflow) => u64::MAX,
        };
        let range = min * unit.factor()..=max * unit.factor();
        if range.contains(&number) {
            return Ok(Value::Number(number));
        }
        if clamp {
            let used = number.clamp(*range.start(), *range.end());
            let kind = DiagnosticKind::Clamped {
                option: self.spec.name.to_owned(),
                value: shown(&word.text),
                used: (used / unit.factor()).to_string(),
            };
            if warnings.len() < MAX_MESSAGES {
                warnings.push(self.fail(kind, word));
            }
            return Ok(Value::Number(used));
        }
        let kind = DiagnosticKind::OutOfRange {
            option: self.spec.name.to_owned(),
            value: shown(&word.text),
            min: min.to_string(),
            max: max.to_string(),
            unit: unit.name().to_owned(),
        };
        Err(self.fail(kind, word))
    }

    fn schedule(&self, word: &Word) -> Result<Value, Diagnostic> {
        match Schedule::parse(&word.text) {
            Ok(schedule) => Ok(Value::Text(schedule.to_string())),
            Err(ScheduleFault::Form) => Err(self.bad(word, FORM)),
            Err(ScheduleFault::Time(time)) => {
                let value = shown(&time);
                Err(self.bad_part(word, value, "a time from 00:00 to 23:59"))
            }
            Err(ScheduleFault::Day(day)) => {
                let error = self.bad_part(word, shown(&day), "a day from Mon to Sun, or `daily`");
                Err(error.suggest(&day, DAYS.into_iter().chain(FULL_DAYS).chain(["daily"])))
            }
        }
    }

    fn choice(&self, word: &Word, words: &'static [&'static str]) -> Result<Value, Diagnostic> {
        if let Some(choice) = words
            .iter()
            .find(|choice| choice.eq_ignore_ascii_case(&word.text))
        {
            return Ok(Value::Text((*choice).to_owned()));
        }
        let kind = DiagnosticKind::BadChoice {
            option: self.spec.name.to_owned(),
            value: shown(&word.text),
            choices: words.join(", "),
        };
        Err(self
            .fail(kind, word)
            .suggest(&word.text, words.iter().copied()))
    }
}

/// What an option without a value lacks.
fn needs(kind: Kind) -> String {
    match kind {
        Kind::Flag { .. } => "`yes` or `no`".to_owned(),
        Kind::Number { min, max, unit, .. } => {
            format!("a number from {min} to {max}{}", unit.name())
        }
        Kind::Choice(words) | Kind::Name(words) => format!("one of {}", words.join(", ")),
        Kind::Schedule => FORM.to_owned(),
        Kind::After => "RESOURCE or RESOURCE/VOLUME".to_owned(),
        Kind::Text { .. } | Kind::Words => "a value".to_owned(),
    }
}

/// Why a text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberFault {
    /// Not digits with one of the known suffixes.
    Form,
    /// More than 64 bits.
    Overflow,
}

/// `50`, `50M`, `8s` (sectors), `250ms`, `3s` (time) to the finest unit of the kind.
pub fn parse_number(text: &str, unit: Unit) -> Result<u64, NumberFault> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err(NumberFault::Form);
    }
    let factor = match (suffix, unit.is_time()) {
        ("", _) => unit.factor(),
        ("ms", true) => 1,
        ("s", true) => 1000,
        ("m" | "min", true) => 60_000,
        ("h", true) => 3_600_000,
        ("s", false) if unit != Unit::Count => 512,
        ("k" | "K", false) => 1 << 10,
        ("m" | "M", false) => 1 << 20,
        ("g" | "G", false) => 1 << 30,
        ("t" | "T", false) => 1 << 40,
        _ => return Err(NumberFault::Form),
    };
    let number: u64 = number.parse().map_err(|_| NumberFault::Overflow)?;
    number.checked_mul(factor).ok_or(NumberFault::Overflow)
}

/// A number for an option of `disk`, as it would be read from a file; the message says what is
/// wrong with it.
pub fn disk_number(name: &str, text: &str) -> Result<u64, String> {
    let number = schema::find(Section::Disk, name).and_then(|found| match found.spec.kind {
        Kind::Number { unit, min, max, .. } => Some((unit, min, max)),
        _ => None,
    });
    let (unit, min, max) = number.ok_or_else(|| format!("`{name}` takes no number"))?;
    match parse_number(text, unit) {
        Ok(value) if (min * unit.factor()..=max * unit.factor()).contains(&value) => Ok(value),
        Ok(_) | Err(NumberFault::Overflow) => Err(format!(
            "`{}` is not from {min} to {max}{}",
            shown(text),
            unit.name()
        )),
        Err(NumberFault::Form) => Err(format!("`{}` is no number", shown(text))),
    }
}

/// A size or place as DRBD's commands take them: without a unit in sectors of 512 bytes.
pub fn size_in_bytes(text: &str) -> Result<u64, String> {
    parse_number(text, Unit::Sectors).map_err(|_| format!("`{}` is no size", shown(text)))
}

/// A type that a field of the model can have.
pub trait Field: Sized {
    /// From what was written or the default. Values have been checked against the schema, a test
    /// shows that each field fits its kind.
    fn read(value: Option<&Value>) -> Self;
    /// The reverse; `None` = unset.
    fn write(&self) -> Option<Value>;
}

impl Field for u32 {
    fn read(value: Option<&Value>) -> u32 {
        u32::try_from(u64::read(value)).unwrap_or(u32::MAX)
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Number(u64::from(*self)))
    }
}

impl Field for u64 {
    fn read(value: Option<&Value>) -> u64 {
        match value {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Number(*self))
    }
}

impl Field for Option<u64> {
    fn read(value: Option<&Value>) -> Option<u64> {
        value.map(|value| u64::read(Some(value)))
    }

    fn write(&self) -> Option<Value> {
        self.map(Value::Number)
    }
}

impl Field for bool {
    fn read(value: Option<&Value>) -> bool {
        matches!(value, Some(Value::Flag(true)))
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Flag(*self))
    }
}

impl Field for Duration {
    fn read(value: Option<&Value>) -> Duration {
        Duration::from_millis(u64::read(value))
    }

    fn write(&self) -> Option<Value> {
        u64::try_from(self.as_millis()).ok().map(Value::Number)
    }
}

impl Field for Option<String> {
    fn read(value: Option<&Value>) -> Option<String> {
        match value {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        self.clone().map(Value::Text)
    }
}

/// When a write counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    A,
    B,
    C,
}

impl Protocol {
    /// Its letter.
    pub fn letter(self) -> char {
        match self {
            Protocol::A => 'A',
            Protocol::B => 'B',
            Protocol::C => 'C',
        }
    }
}

impl Field for Protocol {
    fn read(value: Option<&Value>) -> Protocol {
        match value {
            Some(Value::Text(text)) if text == "A" => Protocol::A,
            Some(Value::Text(text)) if text == "B" => Protocol::B,
            _ => Protocol::C,
        }
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Text(self.letter().to_string()))
    }
}

/// How payload reaches the front end's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The best that works.
    Auto,
    /// Through buffers of the data plane.
    Copy,
}

impl Field for DataPath {
    fn read(value: Option<&Value>) -> DataPath {
        match value {
            Some(Value::Text(text)) if text == "copy" => DataPath::Copy,
            _ => DataPath::Auto,
        }
    }

    fn write(&self) -> Option<Value> {
        let text = match self {
            DataPath::Auto => "auto",
            DataPath::Copy => "copy",
        };
        Some(Value::Text(text.to_owned()))
    }
}

/// Makes the typed form of a section's implemented options.
macro_rules! option_struct {
    (
        $(#[$doc:meta])* $name:ident in $section:expr;
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $option:literal,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// The section of the options.
            pub const SECTION: $crate::config::schema::Section = $section;

            /// Takes each option from the first layer that sets it, else its default.
            pub fn resolve(layers: &[&$crate::config::options::Settings]) -> $name {
                $name {
                    $($field: $crate::config::options::Field::read(
                        $crate::config::options::effective($section, layers, $option).as_ref(),
                    ),)*
                }
            }

            /// The value of an option by its name; `None` if it is unset or not one of these.
            pub fn get(&self, name: &str) -> Option<$crate::config::options::Value> {
                match name {
                    $($option => $crate::config::options::Field::write(&self.$field),)*
                    _ => None,
                }
            }

            /// Names of the options.
            pub const NAMES: &[&str] = &[$($option),*];
        }

        impl Default for $name {
            fn default() -> $name {
                $name::resolve(&[])
            }
        }
    };
}

pub(super) use option_struct;

/// The value of an option: from the first layer that sets it, else its default.
pub fn effective(section: Section, layers: &[&Settings], name: &str) -> Option<Value> {
    layers
        .iter()
        .find_map(|layer| layer.get(name))
        .map(|setting| setting.value.clone())
        .or_else(|| {
            let found = schema::find(section, name)?;
            default_value(found.spec)
        })
}

option_struct! {
    /// Options of the connection (`net`).
    NetOptions in Section::Net;
    /// When a write counts.
    protocol: Protocol = "protocol",
    /// Times `ko_count`: how long a peer that answers pings may take to finish a write.
    timeout: Duration = "timeout",
    /// Pause between attempts to connect.
    connect_interval: Duration = "connect-int",
    /// Idle time before a ping.
    ping_interval: Duration = "ping-int",
    /// How long the answer to a ping may take.
    ping_timeout: Duration = "ping-timeout",
    /// See `timeout`; 0 switches the rule off.
    ko_count: u32 = "ko-count",
    /// Bytes that may be on their way to the peer; 0 = chosen automatically.
    send_buffer: u64 = "sndbuf-size",
    /// Name of a hash. Whatever it says, the challenge is the built-in one, keyed BLAKE3.
    cram_hmac_alg: Option<String> = "cram-hmac-alg",
    /// Key of the connection's authentication.
    shared_secret: Option<String> = "shared-secret",
    /// A sync compares blocks before it copies them.
    csums_alg: Option<String> = "csums-alg",
    /// It does so only where a crash left it open what differs, as it always does.
    csums_after_crash_only: bool = "csums-after-crash-only",
    /// What an online verify hashes with.
    verify_alg: Option<String> = "verify-alg",
    /// An online verify repairs what it finds, from the primary.
    verify_repair: bool = "verify-repair",
    /// When the agent has the copies compared.
    verify_schedule: Option<Schedule> = "verify-schedule",
    /// How payload reaches the front end's buffers.
    data_path: DataPath = "data-path",
}

option_struct! {
    /// Options of a volume's disk (`disk`).
    DiskOptions in Section::Disk;
    /// Extents of 4 MiB that may be written without a metadata write.
    al_extents: u32 = "al-extents",
    /// Bytes per second that a sync from here may take; the lower of the two counts.
    resync_rate: Option<u64> = "resync-rate",
    /// As `resync_rate`; 0 = no limit.
    max_rate: Option<u64> = "c-max-rate",
    /// Bytes per second that a sync goes on with beside a busy application; unset = 10 MiB/s, but
    /// at most a quarter of what disk and link give.
    min_rate: Option<u64> = "c-min-rate",
    /// How long a measurement of disk and link counts; 0 = no regard for the application.
    plan_ahead: Duration = "c-plan-ahead",
    /// Queue that a sync may build while the application is idle.
    delay_target: Duration = "c-delay-target",
    /// Bytes in flight while the application is idle; 0 = by `delay_target`.
    fill_target: u64 = "c-fill-target",
    /// Syncs on this node that come before.
    resync_after: Option<After> = "resync-after",
}

option_struct! {
    /// Options of a node (`global`).
    GlobalOptions in Section::Global;
    /// Syncs that run at once; 0 = no limit.
    max_syncs: u32 = "max-parallel-resyncs",
}

option_struct! {
    /// Commands that the agent runs (`handlers`).
    HandlerOptions in Section::Handlers;
    /// Before a sync makes this copy inconsistent; the sync begins if it ends with 0.
    before_resync_target: Option<String> = "before-resync-target",
    /// This copy has become up to date.
    after_resync_target: Option<String> = "after-resync-target",
    /// A verify of this node has found differences.
    out_of_sync: Option<String> = "out-of-sync",
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CheckOptions, Heartbeat, MonitorOptions, StopLadder};

    #[test]
    fn units_are_those_of_the_option_unless_written() {
        use Unit::{Count, KibPerSecond, Milliseconds, Seconds, Sectors, Tenths};
        assert_eq!(parse_number("5", Tenths), Ok(500));
        assert_eq!(parse_number("250ms", Tenths), Ok(250));
        assert_eq!(parse_number("3s", Tenths), Ok(3000));
        assert_eq!(parse_number("5m", Seconds), Ok(300_000));
        assert_eq!(parse_number("100", Milliseconds), Ok(100));
        assert_eq!(parse_number("50M", KibPerSecond), Ok(50 << 20));
        assert_eq!(parse_number("250", KibPerSecond), Ok(250 << 10));
        assert_eq!(parse_number("8s", KibPerSecond), Ok(4096));
        assert_eq!(parse_number("2", Sectors), Ok(1024));
        assert_eq!(parse_number("8k", Count), Ok(8192));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        use NumberFault::{Form, Overflow};
        for text in ["", "x", "-1", "1.5s", "3x", "K", "5 "] {
            assert_eq!(parse_number(text, Unit::Seconds), Err(Form), "{text}");
        }
        assert_eq!(parse_number("8s", Unit::Count), Err(Form));
        assert_eq!(parse_number("3ms", Unit::Bytes), Err(Form));
        assert_eq!(
            parse_number("99999999999999999999", Unit::Count),
            Err(Overflow)
        );
        assert_eq!(
            parse_number("18446744073709551615K", Unit::Count),
            Err(Overflow)
        );
    }

    #[test]
    fn every_implemented_option_has_a_field_and_every_field_an_option() {
        let named = |section| match section {
            Section::Net => NetOptions::NAMES,
            Section::Disk => DiskOptions::NAMES,
            Section::Heartbeat => Heartbeat::NAMES,
            Section::Service => CheckOptions::NAMES,
            Section::Monitor => MonitorOptions::NAMES,
            Section::StopLadder => StopLadder::NAMES,
            Section::Global => GlobalOptions::NAMES,
            Section::Handlers => HandlerOptions::NAMES,
            _ => &[],
        };
        for section in schema::OPTION_SECTIONS {
            for spec in schema::options(section) {
                let field = named(section).contains(&spec.name);
                match spec.support {
                    Support::Implemented => assert!(field, "{} has no field", spec.name),
                    Support::NotYet | Support::NoEffect(_) => {
                        assert!(!field, "{} has a field", spec.name);
                    }
                    // With one value there is nothing to know.
                    Support::Only(values) => assert_eq!(field, values.len() > 1, "{}", spec.name),
                }
            }
            for name in named(section) {
                assert!(schema::find(section, name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_field_keeps_the_default_of_its_option() {
        let net = NetOptions::default();
        for name in NetOptions::NAMES {
            let spec = schema::find(Section::Net, name).unwrap().spec;
            assert_eq!(net.get(name), default_value(spec), "{name}");
        }
        assert_eq!(net.timeout, Duration::from_secs(6));
        assert_eq!(net.ping_timeout, Duration::from_millis(500));
        assert_eq!(net.ko_count, 7);
        assert_eq!(DiskOptions::default().al_extents, 1237);
    }

    #[test]
    fn values_are_written_in_their_own_unit_if_they_can_be() {
        let spec = |name| schema::find(Section::Syncer, name).unwrap().spec;
        assert_eq!(write_value(spec("ping-timeout"), &Value::Number(500)), "5");
        assert_eq!(
            write_value(spec("ping-timeout"), &Value::Number(250)),
            "250ms"
        );
        assert_eq!(write_value(spec("resync-rate"), &Value::Number(512)), "1s");
        assert_eq!(
            write_value(spec("shared-secret"), &Value::Text("a\"b".to_owned())),
            "\"a\\\"b\""
        );
    }
}
