//! Parsers of option values.

use std::fmt;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use int8_core::Named;

/// Parses the key of a setting; help texts list all keys with their meaning.
pub(crate) fn named<T: Named + Send + Sync>() -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(possible::<T>()).try_map(|key| find::<T>(&key))
}

/// A setting, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrAuto<T> {
    /// The choice is left to the program.
    Auto,
    /// This value.
    Given(T),
}

impl<T> OrAuto<T> {
    /// The value, unless the program is to choose.
    pub(crate) fn given(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Given(value) => Some(value),
        }
    }
}

impl<T: fmt::Display> fmt::Display for OrAuto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Given(value) => value.fmt(f),
        }
    }
}

/// Parses a number or `auto`.
pub(crate) fn count_or_auto(text: &str) -> Result<OrAuto<usize>, String> {
    match text {
        "auto" => Ok(OrAuto::Auto),
        number => number.parse().map(OrAuto::Given).map_err(|_| "expected a number or auto".to_owned()),
    }
}

/// Parses `auto`, which has this meaning, or the key of a setting.
pub(crate) fn or_auto<T: Named + Send + Sync>(
    meaning: &'static str,
) -> impl TypedValueParser<Value = OrAuto<T>> {
    let auto = PossibleValue::new("auto").help(meaning);
    PossibleValuesParser::new(std::iter::once(auto).chain(possible::<T>())).try_map(|key| {
        match key.as_str() {
            "auto" => Ok(OrAuto::Auto),
            key => find(key).map(OrAuto::Given),
        }
    })
}

fn possible<T: Named>() -> impl Iterator<Item = PossibleValue> {
    T::VALUES.iter().map(|value| match value.meaning() {
        "" => PossibleValue::new(value.key()),
        meaning => PossibleValue::new(value.key()).help(meaning),
    })
}

fn find<T: Named>(key: &str) -> Result<T, String> {
    T::VALUES
        .iter()
        .copied()
        .find(|value| value.key() == key)
        .ok_or_else(|| format!("no value is called {key}"))
}

/// Token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids(pub(crate) Vec<u32>);

/// Parses token ids between commas or spaces: `5,17`, `"5, 17"`, `"5 17"`.
///
/// # Errors
/// When one is no id, or there is none.
pub(crate) fn ids(text: &str) -> Result<Ids, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let ids =
        words.map(|word| word.parse().map_err(|_| format!("{word:?} is no token id: a number below 2³²")));
    match ids.collect::<Result<Vec<u32>, _>>()? {
        ids if ids.is_empty() => Err("expected token ids such as 5,17,42".to_owned()),
        ids => Ok(Ids(ids)),
    }
}

/// Fewest bytes of a size without a unit: fewer were meant in another unit.
const LEAST_WITHOUT_UNIT: u64 = 100_000;

/// Parses a size: `5GB`, `500 MB`, `2GiB`, or a number of bytes.
///
/// # Errors
/// When it is none, 0, or so small a number without a unit that one was forgotten.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 11] = [
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
    ];
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim().to_ascii_uppercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    if unit.is_empty()
        && let Ok(count @ 1..LEAST_WITHOUT_UNIT) = digits.parse::<u64>()
    {
        return Err(format!("{count} bytes? Give a unit: {count}GB, {count}MB or {count}GiB"));
    }
    let bytes = digits.parse::<u64>().ok().zip(factor).and_then(|(count, factor)| count.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size such as 5GB, 500MB or 2GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use int8_core::{KvType, Scheme};

    use super::*;

    #[test]
    fn ids_are_separated_by_commas_or_spaces() {
        for text in ["1,2", "1, 2", "1 2", " 1 ,\t2,", "1\n2\n"] {
            assert_eq!(ids(text), Ok(Ids(vec![1, 2])), "{text:?}");
        }
        for text in ["", ",", "a", "-1", "1,4294967296", "1.5"] {
            assert!(ids(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_size_has_a_unit_or_is_large() {
        assert_eq!(size("24GB"), Ok(24_000_000_000));
        assert_eq!(size("24000000000"), Ok(24_000_000_000));
        assert_eq!(size("24 B"), Ok(24));
        assert!(size("24").expect_err("no unit").contains("24GB"));
        assert!(size("0").is_err() && size("GB").is_err());
    }

    #[test]
    fn every_key_is_parsed_to_its_value() {
        let command = clap::Command::new("int8");
        for scheme in Scheme::ALL {
            let found = named::<Scheme>().parse_ref(&command, None, OsStr::new(scheme.key()));
            assert_eq!(found.ok(), Some(scheme));
        }
        assert!(named::<Scheme>().parse_ref(&command, None, OsStr::new("int4")).is_err());
        let parse = |text: &str| or_auto::<KvType>("").parse_ref(&command, None, OsStr::new(text)).ok();
        assert_eq!(parse("auto"), Some(OrAuto::Auto));
        assert_eq!(parse("bf16").and_then(OrAuto::given), Some(KvType::Bf16));
        assert_eq!(parse("BF16"), None);
    }
}
