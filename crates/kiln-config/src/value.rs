//! Values, and the conversions between them that Terraform makes too.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> At<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At {
            value: f(self.value),
            span: self.span,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// As an attribute's value: as if the attribute were not there.
    Null,
    String(String),
    /// Always finite. Whole numbers are exact: none above 2^53 can be written.
    Number(f64),
    Bool(bool),
    List(Vec<At<Value>>),
    Map(BTreeMap<String, Entry>),
    /// `image.NAME`: the image's name.
    Image(String),
}

/// A map's value, and where its key stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: Range<usize>,
    pub(crate) item: At<Value>,
}

/// Up to here a whole number is exact, and no other rounds to it: 2^53 - 1.
pub(crate) const EXACT: f64 = 9_007_199_254_740_991.0;

impl Value {
    pub(crate) fn text_of(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// A list of which every item has the place of the whole.
    pub(crate) fn list_at(items: impl IntoIterator<Item = Value>, span: &Range<usize>) -> Self {
        let at = |value| At {
            value,
            span: span.clone(),
        };
        Self::List(items.into_iter().map(at).collect())
    }

    /// A map of which every entry has the place of the whole.
    pub(crate) fn map_at(
        entries: impl IntoIterator<Item = (String, Value)>,
        span: &Range<usize>,
    ) -> Self {
        let entry = |(name, value)| {
            let item = At {
                value,
                span: span.clone(),
            };
            let key = span.clone();
            (name, Entry { key, item })
        };
        Self::Map(entries.into_iter().map(entry).collect())
    }

    /// As in "is a string".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Image(_) => "an image",
        }
    }

    /// How a template shows it; null, lists, maps and images have no such form.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::String(text) => Some(text.clone()),
            Self::Number(number) => Some(number_text(*number)),
            Self::Bool(truth) => Some(truth.to_string()),
            Self::Null | Self::List(_) | Self::Map(_) | Self::Image(_) => None,
        }
    }

    /// A number, or a string that is one.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::String(text) => parse_number(text),
            Self::Null | Self::Bool(_) | Self::List(_) | Self::Map(_) | Self::Image(_) => None,
        }
    }

    /// A boolean, or the string `true` or `false`.
    pub(crate) fn truth(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            Self::String(text) => text.parse().ok(),
            Self::Null | Self::Number(_) | Self::List(_) | Self::Map(_) | Self::Image(_) => None,
        }
    }

    /// Equal whatever the places are.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.value.same(&b.value))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|((name, a), (other, b))| {
                        name == other && a.item.value.same(&b.item.value)
                    })
            }
            (Self::List(_) | Self::Map(_), _) | (_, Self::List(_) | Self::Map(_)) => false,
            (a, b) => a == b,
        }
    }

    /// A measure of its size in memory.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Null | Self::Number(_) | Self::Bool(_) => 1,
            Self::String(text) | Self::Image(text) => 1 + text.len() / 16,
            Self::List(items) => 1 + items.iter().map(|at| at.value.weight()).sum::<usize>(),
            Self::Map(entries) => {
                let each = |(name, entry): (&String, &Entry)| {
                    2 + name.len() / 16 + entry.item.value.weight()
                };
                1 + entries.iter().map(each).sum::<usize>()
            }
        }
    }
}

/// As Rust prints it, but without the sign of a zero.
pub(crate) fn number_text(number: f64) -> String {
    if number == 0.0 {
        "0".to_owned()
    } else {
        number.to_string()
    }
}

/// Decimal; not the `inf` and `nan` that Rust takes as well.
pub(crate) fn parse_number(text: &str) -> Option<f64> {
    let digits = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    let number: f64 = text
        .bytes()
        .all(digits)
        .then(|| text.parse().ok())
        .flatten()?;
    number.is_finite().then_some(number)
}
