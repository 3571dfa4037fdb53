//! Warnings by the names that `docker build --check` has them under.

use super::instruction::{Action, Command, Instruction};
use super::lines::Raw;
use super::{Check, Complaint, Stage};

pub(super) fn warnings(
    check: &Check,
    raws: &[Raw],
    args: &[Instruction],
    stages: &[Stage],
) -> Vec<Complaint> {
    let mut found = Vec::new();
    casing(raws, &mut found);
    for raw in raws {
        if let Some(line) = raw.empty_lines.first() {
            found.push(Complaint::warning(
                "NoEmptyContinuation",
                line.clone(),
                "an empty line inside an instruction",
                "take it out, or make it a comment",
            ));
        }
    }
    names(stages, &mut found);
    for instruction in args {
        one(instruction, &mut found);
    }
    for stage in stages {
        let mut last: [Option<&Instruction>; 3] = [None; 3];
        for instruction in &stage.instructions {
            one(instruction, &mut found);
            let (slot, name) = match &instruction.action {
                Action::Cmd(_) => (0, "CMD"),
                Action::Entrypoint(_) => (1, "ENTRYPOINT"),
                Action::Healthcheck(_) => (2, "HEALTHCHECK"),
                _ => continue,
            };
            if let Some(earlier) = last[slot].replace(instruction) {
                found.push(Complaint::warning(
                    "MultipleInstructionsDisallowed",
                    earlier.span.clone(),
                    format!("a later {name} of the stage replaces this one"),
                    "keep the last one",
                ));
            }
        }
    }
    found.retain(|complaint| !complaint.rule.is_some_and(|rule| check.skips(rule)));
    found.sort_by_key(|complaint| complaint.span.start);
    found
}

fn casing(raws: &[Raw], found: &mut Vec<Complaint>) {
    let is_upper = |raw: &&Raw| raw.keyword.text == raw.keyword.text.to_uppercase();
    let is_lower = |raw: &&Raw| raw.keyword.text == raw.keyword.text.to_lowercase();
    let upper = raws.iter().filter(is_upper).count();
    let lower = raws.iter().filter(is_lower).count();
    let (wanted, name) = if upper >= lower {
        (true, "upper")
    } else {
        (false, "lower")
    };
    for raw in raws {
        let fits = if wanted {
            is_upper(&raw)
        } else {
            is_lower(&raw)
        };
        if !fits {
            found.push(Complaint::warning(
                "ConsistentInstructionCasing",
                raw.keyword.whole(),
                format!(
                    "`{}` is not written as the other instructions",
                    raw.keyword.text
                ),
                format!("write it in {name} case"),
            ));
        }
    }
}

fn names(stages: &[Stage], found: &mut Vec<Complaint>) {
    for (index, stage) in stages.iter().enumerate() {
        let from = &stage.from;
        let (Some(name), Some(lower)) = (&from.name, &stage.name) else {
            continue;
        };
        if name.text != *lower {
            found.push(Complaint::warning(
                "StageNameCasing",
                name.whole(),
                format!("the name of the stage `{}` is not in lower case", name.text),
                format!("write {lower}"),
            ));
        }
        if ["scratch", "context"].contains(&lower.as_str()) {
            found.push(Complaint::warning(
                "ReservedStageName",
                name.whole(),
                format!("`{lower}` means something else as a name"),
                "use another",
            ));
        }
        let twice = stages[..index]
            .iter()
            .any(|other| other.name.as_ref() == Some(lower));
        if twice {
            found.push(Complaint::warning(
                "DuplicateStageName",
                name.whole(),
                format!("two stages have the name `{lower}`"),
                "the later one is meant by what comes after it: use another name",
            ));
        }
        if let Some(word) = &from.as_word {
            let keyword_upper = "AS";
            let mixed = word.text != keyword_upper && word.text != "as";
            if mixed {
                found.push(Complaint::warning(
                    "FromAsCasing",
                    word.whole(),
                    format!("`{}` is written in two cases", word.text),
                    "write AS",
                ));
            }
        }
    }
}

fn one(instruction: &Instruction, found: &mut Vec<Complaint>) {
    let mut warn = |rule, what: String, help: &str| {
        found.push(Complaint::warning(
            rule,
            instruction.span.clone(),
            what,
            help,
        ));
    };
    let names: Vec<String> = match &instruction.action {
        Action::Cmd(Command::Shell(_)) | Action::Entrypoint(Command::Shell(_)) => {
            warn(
                "JSONArgsRecommended",
                "the shell form: signals reach the shell, not the program".to_owned(),
                "write it as JSON: [\"program\", \"argument\"]",
            );
            return;
        }
        Action::Maintainer(_) => {
            warn(
                "MaintainerDeprecated",
                "MAINTAINER is deprecated".to_owned(),
                "write LABEL org.opencontainers.image.authors=…",
            );
            return;
        }
        Action::Arg(args) => args.iter().map(|(name, _)| name.clone()).collect(),
        Action::Env(pairs) | Action::Label(pairs) => {
            let old = instruction
                .text
                .split_whitespace()
                .nth(1)
                .is_some_and(|word| !word.contains('='));
            if old {
                warn(
                    "LegacyKeyValueFormat",
                    "name and value are separated by white space".to_owned(),
                    "write NAME=VALUE",
                );
            }
            match instruction.action {
                Action::Env(_) => pairs.iter().map(|(name, _)| name.text.clone()).collect(),
                _ => return,
            }
        }
        _ => return,
    };
    for name in names.iter().filter(|name| is_secret(name)) {
        warn(
            "SecretsUsedInArgOrEnv",
            format!("`{name}` looks like a secret, and would stay in the image"),
            "give it to the RUN that needs it: RUN --mount=type=secret,id=…",
        );
    }
}

/// By the words that BuildKit's rule has.
fn is_secret(name: &str) -> bool {
    let words = name.to_lowercase();
    let mut words = words.split('_');
    words.clone().any(|word| {
        [
            "apikey",
            "auth",
            "credential",
            "credentials",
            "key",
            "password",
            "pword",
            "passwd",
            "secret",
            "token",
        ]
        .contains(&word)
    }) && !words.any(|word| word == "public")
}
