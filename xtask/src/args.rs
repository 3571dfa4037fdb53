//! The arguments of one task: `--name value`, `--flag` and words, refused when nothing asked for them.
//!
//! Small and by hand: a parser crate would double what has to be compiled before a check can run.

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
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self(words.into_iter().collect())
    }

    /// The next word that is not an option; to be called before any option is taken.
    pub(crate) fn word(&mut self) -> Option<String> {
        match self.0.first() {
            Some(word) if !word.starts_with('-') => Some(self.0.remove(0)),
            _ => None,
        }
    }

    /// `--name value`; `expected` says what a value looks like.
    pub(crate) fn option<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ArgsError> {
        let Some(at) = self.0.iter().position(|word| word == name) else {
            return Ok(None);
        };
        if at + 1 >= self.0.len() {
            return Err(ArgsError::NoValue { name });
        }
        self.0.remove(at);
        let value = self.0.remove(at);
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
        let at = self.0.iter().position(|word| word == name);
        if let Some(at) = at {
            self.0.remove(at);
        }
        at.is_some()
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
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(word) => Err(ArgsError::Unexpected { word }),
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
