//! Dockerfiles, as BuildKit reads them (Dockerfile reference, syntax 1): text → stages of instructions, each piece with
//! its place, so that an error that is only found when a variable is known can still point at it.
//!
//! Variables are replaced where the instruction is carried out ([`expand`] and its like), since what they are depends on the base.

mod check;
mod instruction;
mod lines;
mod lint;
mod lint_values;
mod mount;
mod pattern;
mod words;

use std::fmt;
use std::ops::Range;

pub use check::Check;
pub use instruction::{
    Action, Command, Copy, Flag, From, Healthcheck, Instruction, Run, Source as CopySource,
};
pub use lines::{Heredoc, Text, is_heredoc_mark};
pub use lint_values::{BaseLookup, BaseValues, LintInputs};
pub use mount::{Mount, MountKind, Sharing, mount};
pub use pattern::{Ignore, PathPattern, has_wildcards};
pub use words::{Variables, WordError, expand, expand_heredoc, expand_words};

use crate::{Source, render};
use instruction::Parsed;

/// Something about a place of a Dockerfile: an error, or a warning under the name that people know it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// None: an error.
    pub rule: Option<&'static str>,
    pub span: Range<usize>,
    pub what: String,
    pub help: String,
}

impl Complaint {
    pub fn error(span: Range<usize>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            rule: None,
            span,
            what: what.into(),
            help: help.into(),
        }
    }

    pub fn warning(
        rule: &'static str,
        span: Range<usize>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            rule: Some(rule),
            ..Self::error(span, what, help)
        }
    }

    /// With the line, carets below it, and the help.
    pub fn render(&self, source: &Source) -> String {
        let headline = match self.rule {
            Some(rule) => format!("warning: {} ({rule})", self.what),
            None => format!("error: {}", self.what),
        };
        let mut out = String::new();
        render::place(
            &mut out,
            &headline,
            Some((source, self.span.start, self.span.len())),
            &source.name,
            "",
            &self.help,
        );
        let lines: Vec<_> = out.lines().map(str::trim_end).collect();
        lines.join("\n")
    }
}

/// What is wrong with a Dockerfile, with the text that it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DockerfileError {
    pub file: Source,
    pub complaint: Box<Complaint>,
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.complaint.render(&self.file))
    }
}

/// A Dockerfile whose every instruction is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub file: Source,
    /// The file as it is, where that is no UTF-8.
    original: Option<Vec<u8>>,
    pub escape: char,
    pub check: Check,
    /// The ARGs before the first FROM.
    pub args: Vec<Instruction>,
    /// Never empty.
    pub stages: Vec<Stage>,
    /// What is known before any variable is; [`Dockerfile::lint`] has all.
    warnings: Vec<Complaint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub from: From,
    /// Lower case.
    pub name: Option<String>,
    pub instructions: Vec<Instruction>,
}

impl Dockerfile {
    pub fn parse(file: Source) -> Result<Self, DockerfileError> {
        Self::parse_checked(file, None)
    }

    /// `check` is in place of the Dockerfile's own `check` directive.
    pub fn parse_checked(file: Source, check: Option<&str>) -> Result<Self, DockerfileError> {
        match parse(&file, check) {
            Ok((escape, check, args, stages, warnings)) => Ok(Self {
                file,
                original: None,
                escape,
                check,
                args,
                stages,
                warnings,
            }),
            Err(complaint) => Err(DockerfileError {
                file,
                complaint: Box::new(complaint),
            }),
        }
    }

    /// Of any bytes. What is no UTF-8 may stand in comments, and is U+FFFD in LABEL and MAINTAINER, as BuildKit has it; in any other
    /// instruction it is an error.
    pub fn parse_bytes(
        name: String,
        bytes: Vec<u8>,
        check: Option<&str>,
    ) -> Result<Self, DockerfileError> {
        let bytes = match String::from_utf8(bytes) {
            Ok(text) => return Self::parse_checked(Source { name, text }, check),
            Err(error) => error.into_bytes(),
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let file = Source { name, text };
        if let Ok((_, raws)) = lines::read(&file)
            && let Some(complaint) = raws.iter().find_map(lines::Raw::no_utf8)
        {
            let complaint = Box::new(complaint);
            return Err(DockerfileError { file, complaint });
        }
        let mut dockerfile = Self::parse_checked(file, check)?;
        dockerfile.original = Some(bytes);
        Ok(dockerfile)
    }

    /// What the file has.
    pub fn bytes(&self) -> &[u8] {
        self.original
            .as_deref()
            .unwrap_or(self.file.text.as_bytes())
    }

    /// Instructions that another file has, such as a base's ONBUILD.
    pub fn of_instructions(file: Source, escape: char) -> Self {
        Self {
            file,
            original: None,
            escape,
            check: Check::default(),
            args: Vec::new(),
            stages: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The stage before `before` that has this name or number.
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let number = || name.parse().ok().filter(|index| *index < before);
        self.stage_called(name, before).or_else(number)
    }

    /// As [`Self::stage`], by its name alone: a mount's `from` is no number, and neither is FROM's image.
    pub fn stage_called(&self, name: &str, before: usize) -> Option<usize> {
        let name = name.to_lowercase();
        (0..before).rev().find(|index| {
            self.stages
                .get(*index)
                .is_some_and(|stage| stage.name.as_ref() == Some(&name))
        })
    }

    pub fn error(&self, complaint: Complaint) -> DockerfileError {
        DockerfileError {
            file: self.file.clone(),
            complaint: Box::new(complaint),
        }
    }
}

type Parts = (char, Check, Vec<Instruction>, Vec<Stage>, Vec<Complaint>);

fn parse(file: &Source, check: Option<&str>) -> Result<Parts, Complaint> {
    let (directives, raws) = lines::read(file)?;
    let given = check.map(|text| Text::of(text, 0));
    let check = Check::parse(given.as_ref().or(directives.check.as_ref()))?;
    let mut args = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for raw in &raws {
        match instruction::parse(raw, directives.escape)? {
            Parsed::From(from) => stages.push(Stage {
                name: from.name.as_ref().map(|name| name.text.to_lowercase()),
                from,
                instructions: Vec::new(),
            }),
            Parsed::Other(instruction) => match (stages.last_mut(), &instruction.action) {
                (Some(stage), _) => stage.instructions.push(instruction),
                (None, Action::Arg(_)) => args.push(instruction),
                (None, _) => {
                    return Err(Complaint::error(
                        raw.keyword.whole(),
                        format!("{} stands before the first FROM", raw.keyword.text),
                        "begin with FROM; only ARG may stand before it",
                    ));
                }
            },
        }
    }
    if stages.is_empty() {
        return Err(Complaint::error(
            0..0,
            "the Dockerfile has no FROM",
            "begin with FROM IMAGE, or FROM scratch for an empty one",
        ));
    }
    let warnings = lint::warnings(&raws, &stages);
    Ok((directives.escape, check, args, stages, warnings))
}

/// The instructions that a base asks a stage on top of it to begin with (ONBUILD).
pub fn triggers(texts: &[String]) -> Result<(Source, Vec<Instruction>), DockerfileError> {
    let file = Source {
        name: "ONBUILD of the base".to_owned(),
        text: texts.iter().map(|text| format!("{text}\n")).collect(),
    };
    let read = || {
        let (directives, raws) = lines::read(&file)?;
        raws.iter()
            .map(|raw| match instruction::parse(raw, directives.escape)? {
                Parsed::Other(instruction) => Ok(instruction),
                Parsed::From(from) => Err(from.image.complain("ONBUILD can't have FROM", "")),
            })
            .collect::<Result<Vec<_>, Complaint>>()
    };
    match read() {
        Ok(instructions) => Ok((file, instructions)),
        Err(complaint) => Err(DockerfileError {
            file,
            complaint: Box::new(complaint),
        }),
    }
}
