//! From a Dockerfile's text to its instructions as text: directives, continuation lines, comments inside them, heredocs.
//!
//! The rules are BuildKit's (Dockerfile reference, "Format", "Parser directives", "Here-documents").

use std::ops::Range;

use super::{Complaint, words};
use crate::Source;

/// A piece of an instruction, continuation lines joined, that knows where each of its bytes stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// From an offset of `text` on, the bytes stand in the file from another one on.
    starts: Vec<(usize, usize)>,
}

impl Text {
    fn push(&mut self, text: &str, at: usize) {
        self.starts.push((self.text.len(), at));
        self.text.push_str(text);
    }

    /// A text that stands nowhere as it is, all of it told to be at `at`.
    pub(super) fn of(text: &str, at: usize) -> Self {
        let mut all = Self::default();
        all.push(text, at);
        all
    }

    fn place(&self, offset: usize) -> usize {
        self.starts
            .iter()
            .rev()
            .find(|(start, _)| *start <= offset)
            .map_or(0, |(start, at)| at + (offset - start))
    }

    /// Where the bytes `range` stand in the file.
    pub fn span(&self, range: Range<usize>) -> Range<usize> {
        let start = self.place(range.start);
        match range.end.checked_sub(1) {
            Some(last) if range.end > range.start => start..self.place(last) + 1,
            _ => start..start,
        }
    }

    pub fn whole(&self) -> Range<usize> {
        self.span(0..self.text.len())
    }

    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        let mut slice = Self::default();
        let mut at = range.start;
        while at < range.end {
            let next = self
                .starts
                .iter()
                .map(|(start, _)| *start)
                .find(|start| *start > at)
                .map_or(range.end, |next| next.min(range.end));
            slice.push(&self.text[at..next], self.place(at));
            at = next;
        }
        if slice.starts.is_empty() {
            slice.starts.push((0, self.place(range.start)));
        }
        slice
    }

    pub(super) fn trimmed(&self) -> Self {
        let start = self.text.len() - self.text.trim_start().len();
        let end = self.text.trim_end().len().max(start);
        self.slice(start..end)
    }

    /// The pieces between white space.
    pub(super) fn split(&self) -> Vec<Self> {
        let mut pieces = Vec::new();
        let mut start = None;
        for (at, c) in self.text.char_indices() {
            match (c.is_whitespace(), start) {
                (true, Some(from)) => {
                    pieces.push(self.slice(from..at));
                    start = None;
                }
                (false, None) => start = Some(at),
                _ => {}
            }
        }
        if let Some(from) = start {
            pieces.push(self.slice(from..self.text.len()));
        }
        pieces
    }

    pub(super) fn complain(&self, what: impl Into<String>, help: impl Into<String>) -> Complaint {
        Complaint::error(self.whole(), what, help)
    }
}

/// A here-document of a RUN, COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// Variables in it are replaced: its delimiter is not quoted.
    pub expand: bool,
    /// Leading tabs are taken away (`<<-`).
    pub chomp: bool,
    pub content: Text,
}

impl Heredoc {
    /// What a file of it has.
    pub fn chomped(&self) -> String {
        if !self.chomp {
            return self.content.text.clone();
        }
        self.content
            .text
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}

/// One instruction, not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) keyword: Text,
    pub(super) rest: Text,
    pub(super) heredocs: Vec<Heredoc>,
    pub(super) empty_lines: Vec<Range<usize>>,
    /// The last line of the comment before it.
    pub(super) comment: Option<Text>,
}

impl Raw {
    /// Where something was replaced that was no UTF-8, and is not only told.
    pub(super) fn no_utf8(&self) -> Option<Complaint> {
        if ["LABEL", "MAINTAINER"].contains(&self.keyword.text.to_uppercase().as_str()) {
            return None;
        }
        let contents = self.heredocs.iter().map(|heredoc| &heredoc.content);
        let mut texts = [&self.keyword, &self.rest].into_iter().chain(contents);
        texts.find_map(|text| {
            let at = text.text.find(char::REPLACEMENT_CHARACTER)?;
            let end = at + char::REPLACEMENT_CHARACTER.len_utf8();
            Some(Complaint::error(
                text.span(at..end),
                "this is no UTF-8",
                "save the Dockerfile as UTF-8; other bytes may stand in comments, LABEL and MAINTAINER",
            ))
        })
    }

    pub(super) fn span(&self) -> Range<usize> {
        let start = self.keyword.whole();
        let end = self.rest.whole().end.max(start.end);
        start.start..end
    }
}

/// The `# name=value` lines at the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) escape: char,
    pub(super) syntax: Option<Text>,
    pub(super) check: Option<Text>,
}

struct Line<'a> {
    text: &'a str,
    /// With the carriage return at its end.
    whole: &'a str,
    at: usize,
    /// With the line's end.
    next: usize,
}

struct Lines<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<Line<'a>> {
        if self.at >= self.text.len() {
            return None;
        }
        let at = self.at;
        let rest = &self.text[at..];
        let end = rest.find('\n').unwrap_or(rest.len());
        self.at = (at + end + 1).min(self.text.len());
        let text = rest[..end].strip_suffix('\r').unwrap_or(&rest[..end]);
        Some(Line {
            text,
            whole: &rest[..end],
            at,
            next: self.at,
        })
    }
}

pub(super) fn read(source: &Source) -> Result<(Directives, Vec<Raw>), Complaint> {
    let text = source.text.as_str();
    let mut lines = Lines {
        text,
        // A byte order mark is no part of the first instruction.
        at: if text.starts_with('\u{feff}') { 3 } else { 0 },
    };
    let directives = directives(&mut lines)?;
    let mut instructions = Vec::new();
    let mut comment = None;
    while let Some(line) = lines.next() {
        let trimmed = line.text.trim_start();
        if let Some(said) = trimmed.strip_prefix('#') {
            let at = line.at + (line.text.len() - said.len());
            comment = Some(Text::of(said, at).trimmed()).filter(|said| !said.text.is_empty());
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        instructions.push(Raw {
            comment: comment.take(),
            ..instruction(line, &mut lines, directives.escape)?
        });
    }
    Ok((directives, instructions))
}

fn directives(lines: &mut Lines<'_>) -> Result<Directives, Complaint> {
    let mut found = Directives {
        escape: '\\',
        syntax: None,
        check: None,
    };
    let mut directives: Vec<String> = Vec::new();
    loop {
        let before = lines.at;
        let Some(line) = lines.next() else { break };
        let directive = line.text.trim().strip_prefix('#').and_then(|rest| {
            let (name, value) = rest.split_once('=')?;
            let name = name.trim().to_lowercase();
            ["syntax", "escape", "check"]
                .contains(&name.as_str())
                .then_some((name, value.trim()))
        });
        let Some((name, value)) = directive else {
            lines.at = before;
            break;
        };
        let mut piece = Text::default();
        let offset = line.text.rfind(value).unwrap_or(0);
        piece.push(value, line.at + offset);
        if directives.contains(&name) {
            return Err(piece.complain(
                format!("the parser directive `{name}` is there twice"),
                "keep one of them",
            ));
        }
        match name.as_str() {
            "escape" => {
                found.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => {
                        return Err(piece.complain(
                            format!("`{value}` can't be the escape character"),
                            "it is `\\` or a backtick",
                        ));
                    }
                }
            }
            "syntax" => found.syntax = Some(piece),
            _ => found.check = Some(piece),
        }
        directives.push(name);
    }
    Ok(found)
}

fn instruction(first: Line<'_>, lines: &mut Lines<'_>, escape: char) -> Result<Raw, Complaint> {
    let mut joined = Text::default();
    let mut empty_lines = Vec::new();
    let lead = first.text.len() - first.text.trim_start().len();
    let (part, mut goes_on) = continued(&first.text[lead..], escape);
    joined.push(part, first.at + lead);
    while goes_on {
        let Some(line) = lines.next() else { break };
        let trimmed = line.text.trim_start();
        if trimmed.starts_with('#') {
            continue;
        }
        if trimmed.is_empty() {
            empty_lines.push(line.at..line.at);
            continue;
        }
        let (part, more) = continued(line.text, escape);
        joined.push(part, line.at);
        goes_on = more;
    }
    let all = joined.trimmed();
    // Not any white space: as BuildKit has it, a no-break space is one of the word's.
    let end = all
        .text
        .find([' ', '\t', '\u{b}', '\u{c}', '\r'])
        .unwrap_or(all.text.len());
    let keyword = all.slice(0..end);
    let rest = all.slice(end..all.text.len()).trimmed();
    let mut heredocs = Vec::new();
    let mut acting = keyword.text.to_lowercase();
    if acting == "onbuild" {
        let inner = rest.split();
        acting = inner
            .first()
            .map_or(acting, |word| word.text.to_lowercase());
    }
    if ["run", "copy", "add"].contains(&acting.as_str()) {
        for word in words::marked_words(&rest.text, escape) {
            let Some((name, expand, chomp)) = heredoc_mark(&word, escape) else {
                continue;
            };
            let content = heredoc(&name, chomp, lines).ok_or_else(|| {
                keyword.complain(
                    format!("the here-document `{name}` has no end"),
                    format!("end it with a line that is `{name}` and nothing else"),
                )
            })?;
            heredocs.push(Heredoc {
                name,
                expand,
                chomp,
                content,
            });
        }
    }
    Ok(Raw {
        keyword,
        rest,
        heredocs,
        empty_lines,
        comment: None,
    })
}

/// A line without its continuation mark, and whether it has one.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        // Two of them are one of the instruction's own.
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

/// The line is the mark of a here-document and nothing else.
pub fn is_heredoc_mark(line: &str, escape: char) -> bool {
    let words = words::marked_words(line, escape);
    words.len() == 1 && words[0].starts_with("<<") && heredoc_mark(&words[0], escape).is_some()
}

/// `<<NAME`, `<< NAME`, `<<-NAME`, `<<"NAME"`: name, whether variables are replaced, whether tabs are taken away.
pub(super) fn heredoc_mark(word: &str, escape: char) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix("<<")?;
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = words::unquoted(rest, escape)?;
    let expand = name == rest;
    (!name.is_empty()).then_some((name, expand, chomp))
}

fn heredoc(name: &str, chomp: bool, lines: &mut Lines<'_>) -> Option<Text> {
    let mut content = Text::default();
    loop {
        let line = lines.next()?;
        let bare = if chomp {
            line.text.trim_start_matches('\t')
        } else {
            line.text
        };
        if bare == name {
            return Some(content);
        }
        content.push(line.whole, line.at);
        content.push("\n", line.next.saturating_sub(1));
    }
}
