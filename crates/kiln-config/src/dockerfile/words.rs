//! Words, quotes and variables, as BuildKit's shell-like lexer has them (Dockerfile reference, "Environment replacement").

use super::pattern;

/// What variables are, and what was asked of them.
pub trait Variables {
    fn get(&self, name: &str) -> Option<String>;
    /// `name` has no value and no modifier that says what then.
    fn undefined(&mut self, name: &str);
}

/// Why a text can't be expanded.
/// More than anybody writes; the stack of a thread has room for more.
const DEPTH_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error("a {0} quote is opened and not closed")]
    OpenQuote(&'static str),
    #[error("`${{` is opened and not closed")]
    OpenBrace,
    #[error("`${{…}}` without a name of a variable")]
    NoName,
    #[error("`{0}` is no modifier of a variable: they are :- :+ :? - + ? # ## % %% / //")]
    Modifier(String),
    #[error("`${{` is opened {DEPTH_MAX} times inside of each other")]
    TooDeep,
    #[error("the variable `{name}` {reason}")]
    Required { name: String, reason: String },
}

/// `text` as one word: quotes taken away, variables replaced.
pub fn expand(
    text: &str,
    escape: char,
    variables: &mut dyn Variables,
) -> Result<String, WordError> {
    let mut lexer = Lexer::new(text, escape, Some(variables));
    lexer.until(None, false)?;
    Ok(lexer.out)
}

/// `text` as words: also what unquoted variables hold is split at white space.
pub fn expand_words(
    text: &str,
    escape: char,
    variables: &mut dyn Variables,
) -> Result<Vec<String>, WordError> {
    let mut lexer = Lexer::new(text, escape, Some(variables));
    lexer.until(None, false)?;
    lexer.end_word();
    Ok(lexer.words)
}

/// A here-document: variables are replaced, quotes stay.
pub fn expand_heredoc(
    text: &str,
    escape: char,
    variables: &mut dyn Variables,
) -> Result<String, WordError> {
    let mut lexer = Lexer::new(text, escape, Some(variables));
    lexer.raw_quotes = true;
    lexer.until(None, false)?;
    Ok(lexer.out)
}

/// `text` without its quotes; none where one is not closed.
pub(super) fn unquoted(text: &str, escape: char) -> Option<String> {
    let mut lexer = Lexer::new(text, escape, None);
    lexer.until(None, false).ok()?;
    Some(lexer.out)
}

/// The words of `text` with their quotes and escapes.
pub(super) fn raw_words(text: &str, escape: char) -> Vec<String> {
    split_quoted(text, escape)
        .into_iter()
        .map(|range| text[range].to_owned())
        .collect()
}

/// As [`raw_words`], with what is behind a `<<` and white space as a part of its word: the mark of a here-document.
pub(super) fn marked_words(text: &str, escape: char) -> Vec<String> {
    split(text, escape, true)
        .into_iter()
        .map(|range| text[range].to_owned())
        .collect()
}

/// Where the words of `text` are, white space inside quotes being a part of them.
pub(super) fn split_quoted(text: &str, escape: char) -> Vec<std::ops::Range<usize>> {
    split(text, escape, false)
}

fn split(text: &str, escape: char, marked: bool) -> Vec<std::ops::Range<usize>> {
    let mut words = Vec::new();
    let (mut start, mut quote, mut escaped) = (None, None, false);
    let mut mark_end = 0;
    for (at, c) in text.char_indices() {
        if at < mark_end {
            continue;
        }
        if marked && quote.is_none() && !escaped && text[at..].starts_with("<<") {
            let after = &text[at + 2..];
            mark_end = text.len() - after.trim_start_matches([' ', '\t', '\r']).len();
            start.get_or_insert(at);
            continue;
        }
        if escaped {
            escaped = false;
            continue;
        }
        match quote {
            None if c.is_whitespace() => {
                if let Some(from) = start.take() {
                    words.push(from..at);
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        start.get_or_insert(at);
        escaped = c == escape && quote != Some('\'');
    }
    words.extend(start.map(|from| from..text.len()));
    words
}

struct Lexer<'a> {
    chars: Vec<char>,
    at: usize,
    escape: char,
    /// None: `$` is a character like any other.
    variables: Option<&'a mut dyn Variables>,
    out: String,
    words: Vec<String>,
    word: String,
    in_word: bool,
    raw_quotes: bool,
    raw_escapes: bool,
    /// Of modifiers whose words are being read.
    depth: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &str, escape: char, variables: Option<&'a mut dyn Variables>) -> Self {
        Self {
            chars: text.chars().collect(),
            at: 0,
            escape,
            variables,
            out: String::new(),
            words: Vec::new(),
            word: String::new(),
            in_word: false,
            raw_quotes: false,
            raw_escapes: false,
            depth: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn end_word(&mut self) {
        if std::mem::take(&mut self.in_word) {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    fn literal(&mut self, c: char) {
        self.out.push(c);
        self.word.push(c);
        self.in_word = true;
    }

    /// Something unquoted: white space ends the word.
    fn unquoted(&mut self, c: char) {
        if c.is_whitespace() {
            self.out.push(c);
            self.end_word();
        } else {
            self.literal(c);
        }
    }

    /// To the end, or to an unquoted `stop`, which is taken.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(), WordError> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_stop(stop);
        self.raw_escapes = before;
        result
    }

    fn until_stop(&mut self, stop: Option<char>) -> Result<(), WordError> {
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.at += 1;
                return Ok(());
            }
            self.at += 1;
            match c {
                '\'' if !self.raw_quotes => self.single()?,
                '"' if !self.raw_quotes => self.double()?,
                '$' if self.variables.is_some() => {
                    for c in self.dollar()?.chars() {
                        self.unquoted(c);
                    }
                }
                c if c == self.escape => {
                    if self.raw_escapes {
                        self.literal(c);
                    }
                    if let Some(next) = self.next() {
                        self.literal(next);
                    }
                }
                c => self.unquoted(c),
            }
        }
        match stop {
            None => Ok(()),
            Some(_) => Err(WordError::OpenBrace),
        }
    }

    fn single(&mut self) -> Result<(), WordError> {
        self.in_word = true;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.literal(c),
                None => return Err(WordError::OpenQuote("single")),
            }
        }
    }

    fn double(&mut self) -> Result<(), WordError> {
        self.in_word = true;
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') if self.variables.is_some() => {
                    for c in self.dollar()?.chars() {
                        self.literal(c);
                    }
                }
                Some(c) if c == self.escape => match self.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        self.literal(next)
                    }
                    Some(next) => {
                        self.literal(c);
                        self.literal(next);
                    }
                    None => self.literal(c),
                },
                Some(c) => self.literal(c),
                None => return Err(WordError::OpenQuote("double")),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let fits = match name.chars().next() {
                None => c.is_ascii_alphanumeric() || c == '_',
                Some(first) if first.is_ascii_digit() => c.is_ascii_digit(),
                Some(_) => c.is_ascii_alphanumeric() || c == '_',
            };
            if !fits {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        if name.is_empty() && self.peek().is_some_and(|c| "@*#?-$!".contains(c)) {
            name.extend(self.next());
        }
        name
    }

    fn value(&mut self, name: &str, told: bool) -> Option<String> {
        let variables = self.variables.as_mut()?;
        let value = variables.get(name);
        if value.is_none() && told {
            variables.undefined(name);
        }
        value
    }

    /// What stands after `$`, replaced.
    fn dollar(&mut self) -> Result<String, WordError> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.value(&name, true).unwrap_or_default());
        }
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return Err(WordError::NoName);
        }
        match self.next() {
            None => Err(WordError::OpenBrace),
            Some('}') => Ok(self.value(&name, true).unwrap_or_default()),
            Some(':') => match self.next() {
                None => Err(WordError::OpenBrace),
                Some(kind @ ('-' | '+' | '?')) => self.unless_set(&name, kind, true),
                Some(other) => Err(WordError::Modifier(format!(":{other}"))),
            },
            Some(kind @ ('-' | '+' | '?')) => self.unless_set(&name, kind, false),
            Some(side @ ('#' | '%')) => {
                let greedy = self.peek() == Some(side);
                if greedy {
                    self.at += 1;
                }
                let wanted = self.nested('}', true)?;
                let value = self.value(&name, true).unwrap_or_default();
                Ok(pattern::trim(&value, &wanted, side == '#', greedy))
            }
            Some('/') => {
                let all = self.peek() == Some('/');
                if all {
                    self.at += 1;
                }
                let wanted = self.nested('/', true)?;
                let replacement = self.nested('}', true)?;
                let value = self.value(&name, true).unwrap_or_default();
                Ok(pattern::replace(&value, &wanted, &replacement, all))
            }
            Some(other) => Err(WordError::Modifier(other.to_string())),
        }
    }

    fn unless_set(
        &mut self,
        name: &str,
        kind: char,
        empty_is_unset: bool,
    ) -> Result<String, WordError> {
        let word = self.nested('}', false)?;
        let value = self
            .value(name, false)
            .filter(|value| !(empty_is_unset && value.is_empty()));
        match (kind, value) {
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            ('-', None) => Ok(word),
            (_, None) => Err(WordError::Required {
                name: name.to_owned(),
                reason: if word.is_empty() {
                    "is not allowed to be unset".to_owned()
                } else {
                    format!("has no value: {word}")
                },
            }),
        }
    }

    /// The word of a modifier, which may have quotes and variables of its own.
    fn nested(&mut self, stop: char, raw_escapes: bool) -> Result<String, WordError> {
        if self.depth == DEPTH_MAX {
            return Err(WordError::TooDeep);
        }
        self.depth += 1;
        let out = std::mem::take(&mut self.out);
        let (word, in_word) = (std::mem::take(&mut self.word), self.in_word);
        let words = std::mem::take(&mut self.words);
        let result = self.until(Some(stop), raw_escapes);
        self.depth -= 1;
        self.words = words;
        (self.word, self.in_word) = (word, in_word);
        let inner = std::mem::replace(&mut self.out, out);
        result.map(|()| inner)
    }
}
