//! The arguments of one task: `--name value`, `--flag` and words, refused when nothing asked for them.
//!
//! pico-args takes them apart: it has no dependencies, and is compiled in a second. What is here says it in kiln's words.

use std::str::FromStr;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    #[error("`{name}` needs a value: `{name} VALUE`")]
    NoValue { name: &'static str },
    #[error("`{name} {value}`: expected {expected}")]
    BadValue {
        name: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("unexpected argument `{word}`; `cargo xtask help` lists what there is")]
    Unexpected { word: String },
}

/// What has not been taken yet.
#[derive(Debug)]
pub(crate) struct Args(pico_args::Arguments);

impl Args {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        Self(pico_args::Arguments::from_vec(words))
    }

    /// The next word that is not an option; to be called before any option is taken.
    pub(crate) fn word(&mut self) -> Option<String> {
        self.0.subcommand().ok().flatten()
    }

    /// `--name value`; `expected` says what a value looks like.
    pub(crate) fn option<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ArgsError> {
        let value: Option<String> = self
            .0
            .opt_value_from_str(name)
            .map_err(|_| ArgsError::NoValue { name })?;
        let Some(value) = value else {
            return Ok(None);
        };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(ArgsError::BadValue {
                name,
                value,
                expected,
            }),
        }
    }

    /// `--name` alone.
    pub(crate) fn flag(&mut self, name: &'static str) -> bool {
        self.0.contains(name)
    }

    /// A whole number above zero.
    pub(crate) fn count(&mut self, name: &'static str, default: u64) -> Result<u64, ArgsError> {
        let expected = "a whole number above 0";
        match self.option::<u64>(name, expected)? {
            None => Ok(default),
            Some(0) => Err(ArgsError::BadValue {
                name,
                value: "0".to_owned(),
                expected,
            }),
            Some(count) => Ok(count),
        }
    }

    pub(crate) fn end(self) -> Result<(), ArgsError> {
        match self.0.finish().into_iter().next() {
            None => Ok(()),
            Some(word) => Err(ArgsError::Unexpected {
                word: word.to_string_lossy().into_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_in_any_order() {
        let mut args = args("switch --requests 7 --cycles 3");
        assert_eq!(args.word().as_deref(), Some("switch"));
        assert_eq!(args.count("--cycles", 50), Ok(3));
        assert_eq!(args.count("--requests", 1), Ok(7));
        assert_eq!(args.count("--rate", 9), Ok(9));
        assert_eq!(args.end(), Ok(()));
    }

    #[test]
    fn flags_are_taken_once() {
        let mut args = args("--new --cases 3");
        assert!(args.flag("--new") && !args.flag("--record"));
        assert_eq!(args.count("--cases", 1), Ok(3));
        assert_eq!(args.end(), Ok(()));
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        assert_eq!(
            args("--cylces 3").end(),
            Err(ArgsError::Unexpected {
                word: "--cylces".to_owned()
            })
        );
        assert_eq!(
            args("--n").count("--n", 1),
            Err(ArgsError::NoValue { name: "--n" })
        );
        assert!(matches!(
            args("--n many").count("--n", 1),
            Err(ArgsError::BadValue { .. })
        ));
        assert!(matches!(
            args("--n 0").count("--n", 1),
            Err(ArgsError::BadValue { .. })
        ));
    }
}
