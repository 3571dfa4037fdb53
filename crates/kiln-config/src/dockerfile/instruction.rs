//! The instructions, understood as far as no variable has to be known for it.

use std::ops::Range;

use super::lines::{self, Heredoc, Raw, Text};
use super::{Complaint, words};
use crate::suggest;

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub action: Action,
    /// All of it, in the file.
    pub span: Range<usize>,
    /// As it is written, continuation lines joined.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Arg(Vec<(String, Option<Text>)>),
    Env(Vec<(Text, Text)>),
    Label(Vec<(Text, Text)>),
    Run(Run),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Copy(Copy),
    Add(Copy),
    Workdir(Text),
    User(Text),
    Expose(Vec<Text>),
    Volume(Vec<Text>),
    StopSignal(Text),
    Healthcheck(Healthcheck),
    /// The instruction that a stage on top of the image begins with.
    Onbuild(String),
    Maintainer(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    pub name: String,
    /// None: `--name` alone.
    pub value: Option<Text>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub flags: Vec<Flag>,
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
}

/// COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub from: Option<Text>,
    pub chown: Option<Text>,
    pub chmod: Option<Text>,
    pub checksum: Option<Text>,
    pub link: bool,
    pub parents: bool,
    pub keep_git_dir: bool,
    pub unpack: Option<bool>,
    pub exclude: Vec<Text>,
    pub sources: Vec<Source>,
    pub to: Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Path(Text),
    Heredoc(Heredoc),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    None,
    Check {
        command: Command,
        /// Nanoseconds; 0 is the default.
        interval: u64,
        timeout: u64,
        start_period: u64,
        start_interval: u64,
        retries: u64,
    },
}

/// What FROM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    pub image: Text,
    pub platform: Option<Text>,
    pub name: Option<Text>,
    pub as_word: Option<Text>,
    pub span: Range<usize>,
}

pub(super) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

pub(super) enum Parsed {
    From(From),
    Other(Instruction),
}

/// The flags that begin `rest`, and what comes after them.
fn flags(rest: &Text, escape: char) -> Result<(Vec<(Flag, Text)>, Text), Complaint> {
    let mut found = Vec::new();
    for range in words::split_quoted(&rest.text, escape) {
        let word = rest.slice(range.clone());
        let Some(flag) = word.text.strip_prefix("--") else {
            return Ok((found, rest.slice(range.start..rest.text.len())));
        };
        if flag.is_empty() {
            return Ok((found, rest.slice(range.end..rest.text.len()).trimmed()));
        }
        let (name, value) = match word.text.find('=') {
            None => (flag.to_owned(), None),
            Some(at) => {
                let mut value = word.slice(at + 1..word.text.len());
                let bare = words::unquoted(&value.text, escape)
                    .ok_or_else(|| value.complain("a quote is not closed", "close it"))?;
                if bare != value.text {
                    let span = value.span(0..0);
                    value = Text::of(&bare, span.start);
                }
                (word.text[2..at].to_owned(), Some(value))
            }
        };
        found.push((Flag { name, value }, word));
    }
    Ok((found, rest.slice(rest.text.len()..rest.text.len())))
}

struct Flags {
    keyword: String,
    given: Vec<(Flag, Text)>,
}

impl Flags {
    fn checked(
        keyword: &str,
        given: Vec<(Flag, Text)>,
        allowed: &[&str],
    ) -> Result<Self, Complaint> {
        for (index, (flag, word)) in given.iter().enumerate() {
            if !allowed.contains(&flag.name.as_str()) {
                let help = match suggest::nearest(&flag.name, allowed.iter().copied()) {
                    Some(near) => format!("did you mean `--{near}`?"),
                    None if allowed.is_empty() => format!("{keyword} has no flags"),
                    None => format!("it has --{}", allowed.join(", --")),
                };
                return Err(word.complain(format!("{keyword} has no flag `--{}`", flag.name), help));
            }
            let repeats = ["mount", "exclude"].contains(&flag.name.as_str());
            if !repeats
                && given[..index]
                    .iter()
                    .any(|(other, _)| other.name == flag.name)
            {
                return Err(word.complain(
                    format!("the flag `--{}` is there twice", flag.name),
                    "keep one of them",
                ));
            }
        }
        Ok(Self {
            keyword: keyword.to_owned(),
            given,
        })
    }

    fn all(&self, name: &str) -> Result<Vec<Text>, Complaint> {
        self.given
            .iter()
            .filter(|(flag, _)| flag.name == name)
            .map(|(flag, word)| {
                flag.value.clone().ok_or_else(|| {
                    word.complain(
                        format!("`--{name}` of {} has no value", self.keyword),
                        format!("write it as --{name}=VALUE"),
                    )
                })
            })
            .collect()
    }

    /// An empty one is none, as BuildKit has it.
    fn one(&self, name: &str) -> Result<Option<Text>, Complaint> {
        Ok(self.all(name)?.pop().filter(|text| !text.text.is_empty()))
    }

    fn switch(&self, name: &str) -> Result<Option<bool>, Complaint> {
        let Some((flag, word)) = self.given.iter().find(|(flag, _)| flag.name == name) else {
            return Ok(None);
        };
        let value = flag.value.as_ref().map(|value| value.text.to_lowercase());
        match value.as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(word.complain(
                format!("`--{name}` is true or false"),
                format!("write --{name}"),
            )),
        }
    }
}

/// The JSON form. None: it is not that.
fn json(rest: &Text) -> Result<Option<Vec<String>>, Complaint> {
    if !rest.text.starts_with('[') {
        return Ok(None);
    }
    match serde_json::from_str::<serde_json::Value>(&rest.text) {
        Ok(serde_json::Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                serde_json::Value::String(text) => Ok(text),
                _ => Err(rest.complain(
                    "the JSON form has text only",
                    "put each of its words into double quotes",
                )),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Some),
        _ => Ok(None),
    }
}

fn command(rest: &Text) -> Result<Command, Complaint> {
    Ok(match json(rest)? {
        Some(words) => Command::Exec(words),
        None => Command::Shell(rest.text.clone()),
    })
}

fn list(rest: &Text) -> Result<Vec<Text>, Complaint> {
    Ok(match json(rest)? {
        Some(words) => words
            .iter()
            .map(|word| Text::of(word, rest.whole().start))
            .collect(),
        None => rest.split(),
    })
}

/// `a=b c="d e"`, or of old `a b c d`.
fn pairs(keyword: &str, rest: &Text, escape: char) -> Result<Vec<(Text, Text)>, Complaint> {
    let ranges = words::split_quoted(&rest.text, escape);
    let first = ranges.first().cloned().unwrap_or(0..0);
    if !rest.text[first.clone()].contains('=') {
        let value = rest.slice(first.end..rest.text.len()).trimmed();
        if value.text.is_empty() {
            return Err(rest.complain(
                format!("{keyword} lacks a value"),
                format!("write it as {keyword} NAME=VALUE"),
            ));
        }
        return Ok(vec![(rest.slice(first), value)]);
    }
    ranges
        .into_iter()
        .map(|range| {
            let word = rest.slice(range);
            match word.text.find('=') {
                Some(0) => Err(word.complain(
                    format!("{keyword} has a value without a name"),
                    "write NAME=VALUE, without white space around `=`",
                )),
                Some(at) => Ok((word.slice(0..at), word.slice(at + 1..word.text.len()))),
                None => Err(word.complain(
                    format!("`{}` is not NAME=VALUE", word.text),
                    "put a value with white space into double quotes",
                )),
            }
        })
        .collect()
}

pub(super) fn parse(raw: &Raw, escape: char) -> Result<Parsed, Complaint> {
    let keyword = raw.keyword.text.to_uppercase();
    if !KEYWORDS.contains(&keyword.as_str()) {
        let help = match suggest::nearest(&keyword, KEYWORDS) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the instructions are {}", KEYWORDS.join(", ")),
        };
        return Err(raw.keyword.complain(
            format!("`{}` is not an instruction", raw.keyword.text),
            help,
        ));
    }
    let (given, rest) = match keyword.as_str() {
        // Its flags are those of the instruction in it.
        "ONBUILD" => (Vec::new(), raw.rest.clone()),
        _ => flags(&raw.rest, escape)?,
    };
    let known: &[&str] = match keyword.as_str() {
        "FROM" => &["platform"],
        "RUN" => &["mount", "network", "security", "device"],
        "COPY" => &["from", "chown", "chmod", "link", "parents", "exclude"],
        "ADD" => &[
            "chown",
            "chmod",
            "link",
            "exclude",
            "checksum",
            "keep-git-dir",
            "unpack",
        ],
        "HEALTHCHECK" => &[
            "interval",
            "timeout",
            "start-period",
            "start-interval",
            "retries",
        ],
        _ => &[],
    };
    let flags = Flags::checked(&keyword, given, known)?;
    let lacks = |what: &str| {
        raw.keyword
            .complain(format!("{keyword} lacks {what}"), String::new())
    };
    // As BuildKit has it, a RUN of nothing is a shell that has nothing to do, and so are the other two.
    if rest.text.is_empty() && !["RUN", "CMD", "ENTRYPOINT"].contains(&keyword.as_str()) {
        return Err(lacks(match keyword.as_str() {
            "FROM" => "an image: `FROM scratch` has nothing in it",
            _ => "its argument",
        }));
    }
    let one = || -> Result<Text, Complaint> { Ok(rest.clone()) };
    let action = match keyword.as_str() {
        "FROM" => return from(raw, &rest, &flags).map(Parsed::From),
        "ARG" => {
            let mut args = Vec::new();
            for range in words::split_quoted(&rest.text, escape) {
                let word = rest.slice(range);
                let (name, value) = match word.text.find('=') {
                    Some(at) => (
                        word.text[..at].to_owned(),
                        Some(word.slice(at + 1..word.text.len())),
                    ),
                    None => (word.text.clone(), None),
                };
                if name.is_empty() {
                    return Err(word.complain("ARG has a value without a name", "write NAME=VALUE"));
                }
                args.push((name, value));
            }
            Action::Arg(args)
        }
        "ENV" => Action::Env(pairs("ENV", &rest, escape)?),
        "LABEL" => Action::Label(pairs("LABEL", &rest, escape)?),
        "RUN" => run(raw, &rest, flags)?,
        "CMD" => Action::Cmd(command(&rest)?),
        "ENTRYPOINT" => Action::Entrypoint(command(&rest)?),
        "SHELL" => match json(&rest)? {
            Some(words) if !words.is_empty() => Action::Shell(words),
            _ => {
                return Err(rest.complain(
                    "SHELL has the JSON form only",
                    "write SHELL [\"/bin/sh\", \"-c\"]",
                ));
            }
        },
        "COPY" | "ADD" => copy(raw, &keyword, &rest, &flags, escape)?,
        "WORKDIR" => Action::Workdir(one()?),
        "USER" => Action::User(one()?),
        "EXPOSE" => Action::Expose(rest.split()),
        "VOLUME" => {
            let volumes = list(&rest)?;
            if volumes.is_empty() {
                return Err(lacks("its argument"));
            }
            if volumes.iter().any(|volume| volume.text.trim().is_empty()) {
                return Err(rest.complain("VOLUME has an empty path", "take it out"));
            }
            Action::Volume(volumes)
        }
        "STOPSIGNAL" => Action::StopSignal(one()?),
        "HEALTHCHECK" => healthcheck(&rest, &flags)?,
        "ONBUILD" => {
            let inner = rest.split().first().map(|word| word.text.to_uppercase());
            match inner.as_deref() {
                Some(inner @ ("ONBUILD" | "FROM" | "MAINTAINER")) => {
                    return Err(rest.complain(
                        format!("ONBUILD can't have {inner}"),
                        "write it where it is to happen",
                    ));
                }
                Some(inner) if !KEYWORDS.contains(&inner) => {
                    return Err(rest.complain(
                        format!("`{inner}` is not an instruction"),
                        format!("the instructions are {}", KEYWORDS.join(", ")),
                    ));
                }
                _ => {}
            }
            let mut text = rest.text.clone();
            for heredoc in &raw.heredocs {
                text.push_str(&format!("\n{}{}", heredoc.content.text, heredoc.name));
            }
            Action::Onbuild(text)
        }
        _ => Action::Maintainer(rest.text.clone()),
    };
    Ok(Parsed::Other(Instruction {
        action,
        span: raw.span(),
        text: format!("{keyword} {}", raw.rest.text),
    }))
}

fn from(raw: &Raw, rest: &Text, flags: &Flags) -> Result<From, Complaint> {
    let words = rest.split();
    let (image, as_word, name) = match &words[..] {
        [image] => (image, None, None),
        [image, as_word, name] if as_word.text.eq_ignore_ascii_case("as") => {
            (image, Some(as_word.clone()), Some(name.clone()))
        }
        _ => {
            return Err(rest.complain(
                "FROM has an image and, at most, a name",
                "write FROM IMAGE or FROM IMAGE AS NAME",
            ));
        }
    };
    if let Some(name) = &name {
        let lower = name.text.to_lowercase();
        let good = lower.starts_with(|c: char| c.is_ascii_lowercase())
            && lower
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
        if !good {
            return Err(name.complain(
                format!("`{}` can't be the name of a stage", name.text),
                "it begins with a letter and has letters, digits, `-`, `_` and `.`",
            ));
        }
    }
    Ok(From {
        image: image.clone(),
        platform: flags.one("platform")?,
        name,
        as_word,
        span: raw.span(),
    })
}

fn run(raw: &Raw, rest: &Text, flags: Flags) -> Result<Action, Complaint> {
    let command = command(rest)?;
    if let (Command::Exec(_), false) = (&command, raw.heredocs.is_empty()) {
        return Err(rest.complain(
            "a here-document needs the shell form",
            "write RUN without [ and ]",
        ));
    }
    for name in ["network", "security"] {
        flags.one(name)?;
    }
    for mount in flags.all("mount")? {
        // Where variables are in it, only what they are says whether it is right.
        if !mount.text.contains('$') {
            super::mount::mount(&mount, &mut |value| Ok(value.text.clone()))?;
        }
    }
    Ok(Action::Run(Run {
        flags: flags.given.into_iter().map(|(flag, _)| flag).collect(),
        command,
        heredocs: raw.heredocs.clone(),
    }))
}

fn copy(
    raw: &Raw,
    keyword: &str,
    rest: &Text,
    flags: &Flags,
    escape: char,
) -> Result<Action, Complaint> {
    let mut words = list(rest)?;
    let to = words.pop();
    let (Some(to), false) = (to, words.is_empty()) else {
        return Err(rest.complain(
            format!("{keyword} has one path and needs two"),
            format!("write {keyword} SOURCE… DESTINATION"),
        ));
    };
    let mut heredocs = raw.heredocs.iter();
    let sources = words
        .into_iter()
        .map(|word| match lines::heredoc_mark(&word.text, escape) {
            Some(_) => heredocs
                .next()
                .cloned()
                .map_or(Source::Path(word), Source::Heredoc),
            None => Source::Path(word),
        })
        .collect::<Vec<_>>();
    if heredocs.next().is_some() {
        let misplaced = sources.iter().find_map(|source| match source {
            Source::Path(path) if path.text == "<<" => Some(path),
            _ => None,
        });
        if let Some(arrow) = misplaced {
            return Err(arrow.complain(
                format!("a here-document of {keyword} has its name right behind the <<"),
                "take the space out",
            ));
        }
        return Err(to.complain(
            "the destination can't be a here-document",
            format!("write {keyword} <<NAME DESTINATION"),
        ));
    }
    let copy = Copy {
        from: flags.one("from")?,
        chown: flags.one("chown")?,
        chmod: flags.one("chmod")?,
        checksum: flags.one("checksum")?,
        link: flags.switch("link")?.unwrap_or(false),
        parents: flags.switch("parents")?.unwrap_or(false),
        keep_git_dir: flags.switch("keep-git-dir")?.unwrap_or(false),
        unpack: flags.switch("unpack")?,
        exclude: flags.all("exclude")?,
        sources,
        to,
    };
    Ok(if keyword == "COPY" {
        Action::Copy(copy)
    } else {
        Action::Add(copy)
    })
}

fn healthcheck(rest: &Text, flags: &Flags) -> Result<Action, Complaint> {
    let kind = rest.split().remove(0);
    let after = rest.slice(kind.text.len()..rest.text.len()).trimmed();
    match kind.text.to_uppercase().as_str() {
        "NONE" if after.text.is_empty() => Ok(Action::Healthcheck(Healthcheck::None)),
        "NONE" => Err(after.complain("HEALTHCHECK NONE has no arguments", "take them out")),
        "CMD" if after.text.is_empty() => {
            Err(kind.complain("HEALTHCHECK CMD lacks its command", String::new()))
        }
        "CMD" => {
            let duration = |name: &str| -> Result<u64, Complaint> {
                let Some(text) = flags.one(name)? else {
                    return Ok(0);
                };
                let nanos = go_duration(&text.text).ok_or_else(|| {
                    text.complain(
                        format!("`{}` is not a duration", text.text),
                        "write it as 30s, 1m30s or 500ms",
                    )
                })?;
                // As docker has it: shorter ones can't be kept.
                if nanos != 0 && nanos < 1_000_000 {
                    return Err(text.complain(
                        format!("`--{name}` is shorter than 1ms"),
                        "0s is the default",
                    ));
                }
                Ok(nanos)
            };
            let retries = match flags.one("retries")? {
                None => 0,
                Some(text) => text.text.parse().map_err(|_| {
                    text.complain(
                        format!("`{}` is not a number of retries", text.text),
                        "1 or more",
                    )
                })?,
            };
            Ok(Action::Healthcheck(Healthcheck::Check {
                command: command(&after)?,
                interval: duration("interval")?,
                timeout: duration("timeout")?,
                start_period: duration("start-period")?,
                start_interval: duration("start-interval")?,
                retries,
            }))
        }
        _ => Err(kind.complain(
            format!("HEALTHCHECK has CMD or NONE, not `{}`", kind.text),
            "write HEALTHCHECK CMD COMMAND",
        )),
    }
}

/// Go's `time.ParseDuration`, without a sign, in nanoseconds.
fn go_duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut nanos = 0u128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (whole, fraction) = match rest[..digits].split_once('.') {
            Some((whole, fraction)) => (whole, fraction),
            None => (&rest[..digits], ""),
        };
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 || whole.len() > 18 {
            return None;
        }
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit: u128 = match &rest[..end] {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[end..];
        let number = |digits: &str| match digits {
            "" => Some(0u128),
            digits => digits.parse().ok(),
        };
        nanos += number(whole)? * unit;
        nanos += number(fraction)? * unit / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    }
    u64::try_from(nanos).ok().filter(|_| !text.is_empty())
}
