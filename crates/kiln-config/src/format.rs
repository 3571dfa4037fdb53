//! The one form of a definition: `kiln fmt`. It works on tokens, as Terraform's does, so that comments, empty lines and
//! the order of things stay as they are, and only white space between tokens changes.

use hcl_edit::expr::{Array, FuncArgs, Object};
use hcl_edit::parser::parse_body;
use hcl_edit::structure::Body;
use hcl_edit::visit_mut::{VisitMut, visit_array_mut, visit_func_args_mut, visit_object_mut};

use crate::reader::Reader;
use crate::{ConfigErrors, Outside, Problem, Source, Sources};

/// The definition in its form.
///
/// # Errors
///
/// It is not valid HCL.
pub fn format(source: &Source) -> Result<String, ConfigErrors> {
    let mut reader = Reader::new(Sources::default(), &Nothing);
    let bare = |mut body: Body| {
        Bare.visit_body_mut(&mut body);
        body
    };
    let before = reader.parse(source.clone(), parse_body).map(bare);
    let made = arrange(&source.text);
    // Whatever the tokens were taken for: the meaning never changes.
    let after = parse_body(&made).ok().map(bare);
    if before.is_some() && before != after {
        let end = source.text.len();
        reader.report(
            Problem::Unsupported {
                what: "the form of this definition".to_owned(),
            },
            0..end.min(1),
            "something in it would mean something else afterwards",
            "lay it out by hand, and tell the makers of kiln",
        );
    }
    let (sources, diagnostics) = reader.finish();
    if diagnostics.is_empty() {
        return Ok(made);
    }
    Err(ConfigErrors {
        sources,
        diagnostics,
    })
}

/// Takes away the white space that the parser's types count as part of a value.
struct Bare;

impl VisitMut for Bare {
    fn visit_array_mut(&mut self, node: &mut Array) {
        node.set_trailing("");
        visit_array_mut(self, node);
    }

    fn visit_object_mut(&mut self, node: &mut Object) {
        node.set_trailing("");
        visit_object_mut(self, node);
    }

    fn visit_func_args_mut(&mut self, node: &mut FuncArgs) {
        node.set_trailing("");
        visit_func_args_mut(self, node);
    }
}

/// Formatting needs nothing of the world.
struct Nothing;

impl Outside for Nothing {
    fn file(&self, _: &str) -> Result<Vec<u8>, String> {
        Err("formatting reads no files".to_owned())
    }

    fn files(&self, _: &str) -> Result<Vec<String>, String> {
        Err("formatting reads no files".to_owned())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn date(&self) -> Option<i64> {
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A name or a number.
    Word,
    /// A quoted template or a heredoc, with all that is in it.
    Text,
    Comment,
    Open,
    Close,
    Mark,
}

#[derive(Clone, Copy, Debug)]
struct Token<'t> {
    kind: Kind,
    text: &'t str,
    /// White space stands before it.
    apart: bool,
}

impl Token<'_> {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    /// A value may end with it, so that a `-` behind it is a subtraction, and a `[` an index.
    fn ends_value(&self) -> bool {
        match self.kind {
            Kind::Word => !["in", "if", "for"].contains(&self.text),
            Kind::Text | Kind::Close => true,
            Kind::Comment | Kind::Open | Kind::Mark => false,
        }
    }
}

/// Tokens by line; a token that has several lines belongs to its first.
fn lines(text: &str) -> Vec<Vec<Token<'_>>> {
    let mut lines = vec![Vec::new()];
    let mut rest = text;
    let mut apart = false;
    while let Some(first) = rest.chars().next() {
        if first == '\n' {
            lines.push(Vec::new());
            rest = &rest[1..];
            apart = false;
            continue;
        }
        if first.is_whitespace() || first == '\u{feff}' {
            rest = &rest[first.len_utf8()..];
            apart = true;
            continue;
        }
        let (kind, length) = token(rest);
        let (text, after) = rest.split_at(length);
        let token = Token {
            kind,
            text: if kind == Kind::Comment {
                text.trim_end()
            } else {
                text
            },
            apart,
        };
        if let Some(line) = lines.last_mut() {
            line.push(token);
        }
        rest = after;
        apart = false;
    }
    lines
}

/// The kind of the first token and its length in bytes.
fn token(text: &str) -> (Kind, usize) {
    let line = text.find('\n').unwrap_or(text.len());
    let Some(first) = text.chars().next() else {
        return (Kind::Mark, 0);
    };
    if first == '#' || text.starts_with("//") {
        return (Kind::Comment, line);
    }
    if text.starts_with("/*") {
        let end = text.find("*/").map_or(text.len(), |at| at + 2);
        return (Kind::Comment, end);
    }
    match first {
        '"' => return (Kind::Text, quoted(text)),
        '{' | '[' | '(' => return (Kind::Open, 1),
        '}' | ']' | ')' => return (Kind::Close, 1),
        _ => {}
    }
    if let Some(end) = heredoc(text) {
        return (Kind::Text, end);
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if first.is_ascii_digit() {
        // An exponent has a sign of its own.
        let mut end = 0;
        for (at, letter) in text.char_indices() {
            let sign = (letter == '+' || letter == '-')
                && text[..at].ends_with(['e', 'E'])
                && text[at + 1..].starts_with(|c: char| c.is_ascii_digit());
            let point = letter == '.' && text[at + 1..].starts_with(|c: char| c.is_ascii_digit());
            if !(word(letter) || sign || point) {
                break;
            }
            end = at + letter.len_utf8();
        }
        return (Kind::Word, end);
    }
    if word(first) {
        let end = text
            .find(|c: char| !(word(c) || c == '-'))
            .unwrap_or(text.len());
        return (Kind::Word, end);
    }
    for mark in ["...", "=>", "==", "!=", "<=", ">=", "&&", "||", "::"] {
        if text.starts_with(mark) {
            return (Kind::Mark, mark.len());
        }
    }
    (Kind::Mark, first.len_utf8())
}

/// The length of a quoted template, with the templates inside its `${ }`.
fn quoted(text: &str) -> usize {
    let bytes = text.as_bytes();
    // For each `${` that is open, how many braces are open in it; none: in a text itself.
    let mut open: Vec<usize> = Vec::new();
    let mut texts = 0;
    let mut at = 0;
    // Whether each `${` was opened in a text: texts and code take turns.
    let mut in_text = false;
    while at < bytes.len() {
        let byte = bytes[at];
        if in_text {
            match byte {
                b'\\' => at += 1,
                b'"' => {
                    in_text = false;
                    texts -= 1;
                    if texts == 0 {
                        return at + 1;
                    }
                }
                b'$' | b'%' if bytes.get(at + 1) == Some(&b'{') => {
                    // `$${` is meant as such.
                    if at == 0 || bytes[at - 1] != byte {
                        open.push(0);
                        in_text = false;
                    }
                    at += 1;
                }
                _ => {}
            }
        } else {
            match byte {
                b'"' => {
                    in_text = true;
                    texts += 1;
                }
                b'{' => {
                    if let Some(braces) = open.last_mut() {
                        *braces += 1;
                    }
                }
                b'}' => match open.last_mut() {
                    Some(0) => {
                        open.pop();
                        in_text = true;
                    }
                    Some(braces) => *braces -= 1,
                    None => {}
                },
                _ => {}
            }
        }
        at += 1;
    }
    text.len()
}

/// The length of `<<END … END`, up to and with its last word.
fn heredoc(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("<<")?;
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    let first = rest.find('\n')?;
    let word = rest[..first].trim_end_matches('\r');
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    if word.is_empty() || !word.chars().all(part) {
        return None;
    }
    let mut at = text.len() - rest.len() + first + 1;
    for line in text[at..].split_inclusive('\n') {
        let lead = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(after) = line[lead..].strip_prefix(word)
            && !after.starts_with(part)
        {
            return Some(at + lead + word.len());
        }
        at += line.len();
    }
    None
}

/// A line without its comment, and where its parts stand.
struct Line {
    indent: usize,
    /// In front of the `=`, where the line is one that is aligned.
    name: Option<String>,
    /// What follows the name, or all of it.
    rest: String,
    comment: Option<String>,
}

fn arrange(text: &str) -> String {
    let mut made: Vec<Line> = Vec::new();
    // For each bracket that is open, the indentation of the line that opened it.
    let mut open: Vec<usize> = Vec::new();
    for tokens in lines(text) {
        made.push(line(&tokens, &mut open));
    }
    align(&mut made);
    let mut out = String::new();
    for Line {
        indent,
        name,
        rest,
        comment,
    } in made
    {
        let mut whole = "  ".repeat(indent);
        if let Some(name) = name {
            whole.push_str(&name);
        }
        whole.push_str(&rest);
        if let Some(comment) = comment {
            whole.push_str(&comment);
        }
        // Blanks at the end of a heredoc's or comment's inner lines are theirs.
        out.push_str(whole.trim_end_matches([' ', '\t', '\r']));
        out.push('\n');
    }
    let out = out.trim_start_matches('\n');
    let out = out.trim_end_matches('\n');
    if out.is_empty() {
        String::new()
    } else {
        format!("{out}\n")
    }
}

fn line(tokens: &[Token<'_>], open: &mut Vec<usize>) -> Line {
    let depth = open.len();
    let leading = tokens
        .iter()
        .take_while(|token| token.kind == Kind::Close)
        .count();
    let mut indent = open.last().map_or(0, |indent| indent + 1);
    for _ in 0..leading {
        // A closing bracket stands where the line of its opening one does.
        indent = open.pop().unwrap_or(0);
    }
    for token in &tokens[leading..] {
        match token.kind {
            Kind::Open => open.push(indent),
            Kind::Close => {
                open.pop();
            }
            Kind::Word | Kind::Text | Kind::Comment | Kind::Mark => {}
        }
    }
    let (code, comment) = match tokens.split_last() {
        // One that stands alone is indented like code.
        Some((last, code)) if last.kind == Kind::Comment && !code.is_empty() => {
            (code, Some(last.text.to_owned()))
        }
        _ => (tokens, None),
    };
    let single = code.iter().all(|token| !token.text.contains('\n'));
    let assignment = assigned(code);
    let mut name = None;
    let mut rest = String::new();
    for (index, token) in code.iter().enumerate() {
        if index > 0 && space(code, index) {
            rest.push(' ');
        }
        if assignment == Some(index) && single && open.len() == depth && leading == 0 {
            name = Some(std::mem::take(&mut rest));
        }
        rest.push_str(token.text);
    }
    Line {
        indent,
        name,
        rest,
        comment,
    }
}

/// The index of the `=` of an attribute.
fn assigned(code: &[Token<'_>]) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in code.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Mark if token.is("=") && depth == 0 => return Some(index),
            Kind::Word | Kind::Text | Kind::Comment | Kind::Mark => {}
        }
    }
    None
}

/// Whether a blank stands before the token at `index`, which is not the first.
fn space(code: &[Token<'_>], index: usize) -> bool {
    let (before, token) = (&code[index - 1], &code[index]);
    // `[*]` and `.*`.
    let splat =
        |at: usize| code[at].is("*") && at > 0 && (code[at - 1].is("[") || code[at - 1].is("."));
    // A sign belongs to what follows.
    let sign = |at: usize| {
        (code[at].is("-") && (at == 0 || !code[at - 1].ends_value())) || code[at].is("!")
    };
    if token.kind == Kind::Comment || before.kind == Kind::Comment {
        return true;
    }
    if token.is(",") || token.is(".") || token.is("::") || token.is("...") {
        return false;
    }
    if before.is(".") || before.is("::") || splat(index) || splat(index - 1) {
        return false;
    }
    if sign(index - 1) {
        return false;
    }
    if before.is("{") && token.is("}") {
        return false;
    }
    if before.is("(") || before.is("[") || token.is(")") || token.is("]") {
        return false;
    }
    // An index or a call, or a value of its own: as it was written.
    if (token.is("[") || token.is("(")) && before.ends_value() {
        return token.apart;
    }
    true
}

/// Lines that follow one another have their `=` below one another, and their comments.
fn align(lines: &mut [Line]) {
    let mut from = 0;
    while from < lines.len() {
        let indent = lines[from].indent;
        let count = lines[from..]
            .iter()
            .take_while(|line| line.name.is_some() && line.indent == indent)
            .count();
        let run = &mut lines[from..from + count];
        let width = |name: &Option<String>| name.as_ref().map_or(0, |name| name.chars().count());
        let widest = run.iter().map(|line| width(&line.name)).max().unwrap_or(0);
        for line in run {
            let missing = widest - width(&line.name);
            if let Some(name) = &mut line.name {
                name.push_str(&" ".repeat(missing));
            }
        }
        from += count.max(1);
    }
    let mut from = 0;
    while from < lines.len() {
        let count = lines[from..]
            .iter()
            .take_while(|line| line.comment.is_some())
            .count();
        let run = &mut lines[from..from + count];
        let width = |line: &Line| {
            let name = line.name.as_deref().unwrap_or("");
            let last = line.rest.rsplit('\n').next().unwrap_or("");
            line.indent * 2 + name.chars().count() + last.chars().count()
        };
        let widest = run.iter().map(width).max().unwrap_or(0);
        for line in run {
            let lead = " ".repeat(widest - width(line) + 1);
            if let Some(comment) = &mut line.comment {
                comment.insert_str(0, &lead);
            }
        }
        from += count.max(1);
    }
}
