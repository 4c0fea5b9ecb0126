//! How settings are written: durations, counts, addresses and secrets, judged where they are read.
//!
//! Each refusal says what would be right, in words that need no knowledge of the program.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::num::NonZeroU64;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// A [`Duration`](std::time::Duration) written as a number of seconds: `30`, `2.5`.
pub mod seconds {
    use std::time::Duration;

    use super::*;
    use serde::Serializer;

    const SHORTEST: Duration = Duration::from_millis(1);
    /// The clocks and timers beneath take any duration up to this one without overflow.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    /// Reads what [`serialize`] writes, from a millisecond to a year.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_any(Seconds)
    }

    /// Writes whole seconds as an integer, others as a float.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        match duration.subsec_nanos() {
            0 => to.serialize_u64(duration.as_secs()),
            _ => to.serialize_f64(duration.as_secs_f64()),
        }
    }

    struct Seconds;

    impl Visitor<'_> for Seconds {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a number of seconds, from 0.001 to 31536000 (a year)")
        }

        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
            u64::try_from(seconds)
                .ok()
                .map(Duration::from_secs)
                .filter(|it| (SHORTEST..=LONGEST).contains(it))
                .ok_or_else(|| E::invalid_value(Unexpected::Signed(seconds), &self))
        }

        fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
            Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|it| (SHORTEST..=LONGEST).contains(it))
                .ok_or_else(|| E::invalid_value(Unexpected::Float(seconds), &self))
        }
    }
}

/// Reads how many of something there may be: a whole number, at least 1, that fits the `NonZero` type asked for.
pub fn count<'de, D, N>(from: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<NonZeroU64>,
{
    from.deserialize_any(Count(PhantomData))
}

/// Reads a [`count`] of something that has no bound where none is given.
pub fn some_count<'de, D, N>(from: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<NonZeroU64>,
{
    count(from).map(Some)
}

struct Count<N>(PhantomData<N>);

impl<N: TryFrom<NonZeroU64>> Visitor<'_> for Count<N> {
    type Value = N;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let largest = u64::MAX >> (64 - 8 * size_of::<N>());
        match i64::try_from(largest) {
            Ok(largest) => write!(f, "a whole number from 1 to {largest}"),
            Err(_) => f.write_str("a whole number, at least 1"),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<N, E> {
        u64::try_from(number)
            .ok()
            .and_then(NonZeroU64::new)
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

/// Reads an address to listen on: an IP address with a port.
pub fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    from.deserialize_any(Address)
}

struct Address;

impl Visitor<'_> for Address {
    type Value = SocketAddr;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(r#"an IP address with a port, such as "127.0.0.1:8080", "0.0.0.0:8080" or "[::1]:8080""#)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SocketAddr, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// [`seconds`] that need not be given.
pub mod some_seconds {
    use std::time::Duration;

    use super::*;
    use serde::Serializer;

    /// Reads what is written as [`seconds`].
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        seconds::deserialize(from).map(Some)
    }

    /// Writes nothing for nothing.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => seconds::serialize(duration, to),
            None => to.serialize_none(),
        }
    }
}

/// Text that is never shown: not in an error, not in a log, not by `check-config`.
pub mod secret {
    use std::cell::Cell;

    use super::*;
    use secrecy::{ExposeSecret, SecretString};
    use serde::{Deserialize, Serializer};

    thread_local! {
        static IS_SHOWN: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes what is written meanwhile hold its secrets: to compare it with another, never to show it.
    pub fn shown<T>(write: impl FnOnce() -> T) -> T {
        IS_SHOWN.set(true);
        let written = write();
        IS_SHOWN.set(false);
        written
    }

    /// Reads a secret. A refusal keeps to itself what was there instead.
    pub fn deserialize<'de, D>(from: D) -> Result<Option<SecretString>, D::Error>
    where
        D: Deserializer<'de>,
    {
        match Option::<String>::deserialize(from) {
            Ok(Some(text)) if text.is_empty() => Err(D::Error::custom("the secret is empty")),
            Ok(text) => Ok(text.map(SecretString::from)),
            Err(_) => Err(D::Error::custom("a secret is a text, in quotes")),
        }
    }

    /// Writes `***` for any secret.
    pub fn serialize<S>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        match secret {
            Some(secret) if IS_SHOWN.get() => to.serialize_str(secret.expose_secret()),
            Some(_) => to.serialize_str("***"),
            None => to.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU16, NonZeroUsize};
    use std::time::Duration;

    use proptest::prelude::*;
    use toml::Value;

    use super::*;

    proptest! {
        #[test]
        fn a_duration_is_from_a_millisecond_to_a_year_and_comes_back_as_written(
            seconds in prop_oneof![any::<f64>().prop_map(Value::from), any::<i64>().prop_map(Value::from), (0..100_000_000i64).prop_map(Value::from), (0.0..1e8).prop_map(Value::from)]
        ) {
            if let Ok(duration) = super::seconds::deserialize(seconds) {
                prop_assert!((0.001..=31_536_000.0).contains(&duration.as_secs_f64()));
                let value = Value::try_from(Written(duration)).expect("TOML");
                prop_assert_eq!(super::seconds::deserialize(value), Ok(duration));
            }
        }

        #[test]
        fn a_count_is_a_whole_number_that_fits(number: i64) {
            let taken = count::<_, NonZeroU16>(Value::from(number));
            prop_assert_eq!(taken.is_ok(), (1..=65_535).contains(&number));
            prop_assert!(taken.is_ok_and(|taken| i64::from(taken.get()) == number) || !(1..=65_535).contains(&number));
        }
    }

    fn parsed(value: &str) -> Value {
        value.parse().expect("the test's value is TOML")
    }

    #[test]
    fn seconds_are_whole_or_not_and_never_zero() {
        for (written, expected) in [
            ("30", Some(Duration::from_secs(30))),
            ("2.5", Some(Duration::from_millis(2500))),
            ("31_536_000", Some(Duration::from_secs(31_536_000))),
            ("0", None),
            ("0.0", None),
            ("1e-9", None),
            ("-1", None),
            ("31_536_001", None),
            ("inf", None),
            ("nan", None),
            ("\"30\"", None),
            ("true", None),
        ] {
            assert_eq!(seconds::deserialize(parsed(written)).ok(), expected, "{written}");
        }
    }

    #[test]
    fn a_duration_is_read_as_it_was_written() {
        for duration in [Duration::from_secs(30), Duration::from_millis(250)] {
            let written = seconds::serialize(&duration, toml::ser::ValueSerializer::new(&mut String::new()))
                .map(|value| value.to_string());
            assert_eq!(seconds::deserialize(parsed(&written.unwrap())).unwrap(), duration);
        }
    }

    #[test]
    fn a_count_says_how_far_it_goes() {
        let refusal = count::<_, NonZeroU16>(parsed("65536")).unwrap_err().to_string();
        assert!(refusal.contains("a whole number from 1 to 65535"), "{refusal}");
        for wrong in ["0", "-1", "1.5", "\"many\""] {
            let refusal = count::<_, NonZeroUsize>(parsed(wrong)).unwrap_err().to_string();
            assert!(refusal.contains("a whole number, at least 1"), "{wrong}: {refusal}");
        }
        assert_eq!(count::<_, NonZeroU16>(parsed("65535")).unwrap(), NonZeroU16::MAX);
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        let refusal = secret::deserialize(parsed("31415")).unwrap_err().to_string();
        assert!(!refusal.contains("31415"), "{refusal}");
    }

    #[derive(serde::Serialize)]
    struct Written(#[serde(serialize_with = "super::seconds::serialize")] Duration);
}
