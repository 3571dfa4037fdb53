//! Warnings by the names that `docker build --check` has them under.

use super::lines::Raw;
use super::{Complaint, Stage};

/// What the text alone says.
pub(super) fn warnings(raws: &[Raw], stages: &[Stage]) -> Vec<Complaint> {
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
        if raw.keyword.text.eq_ignore_ascii_case("maintainer") {
            found.push(Complaint::warning(
                "MaintainerDeprecated",
                raw.span(),
                "MAINTAINER is deprecated",
                "write LABEL org.opencontainers.image.authors=…",
            ));
        }
        described(raw, &mut found);
    }
    names(raws, stages, &mut found);
    found
}

/// The comment before an ARG or a named FROM says what it is for.
fn described(raw: &Raw, found: &mut Vec<Complaint>) {
    let Some(comment) = &raw.comment else { return };
    let keyword = raw.keyword.text.to_uppercase();
    let words: Vec<&str> = raw.rest.text.split_whitespace().collect();
    let names: Vec<String> = match keyword.as_str() {
        "ARG" => words
            .iter()
            .map(|word| word.split('=').next().unwrap_or_default().to_owned())
            .collect(),
        "FROM" => words
            .iter()
            .skip_while(|word| !word.eq_ignore_ascii_case("as"))
            .skip(1)
            .map(|name| name.to_lowercase())
            .collect(),
        _ => return,
    };
    let first = comment.text.split(' ').next().unwrap_or_default();
    let name = match &names[..] {
        [] => return,
        names if names.iter().any(|name| name == first) => return,
        [name] => name,
        _ => "NAME",
    };
    found.push(Complaint::warning(
        "InvalidDefinitionDescription",
        comment.whole(),
        format!("the comment before {keyword} does not begin with what it describes"),
        format!("write `# {name} DESCRIPTION`, or an empty comment below it"),
    ));
}

fn casing(raws: &[Raw], found: &mut Vec<Complaint>) {
    let is_from = |raw: &Raw| raw.keyword.text.eq_ignore_ascii_case("from");
    let first = raws.iter().position(is_from).unwrap_or(raws.len());
    let raws = &raws[first..];
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

fn names(raws: &[Raw], stages: &[Stage], found: &mut Vec<Complaint>) {
    let is_from = |raw: &&Raw| raw.keyword.text.eq_ignore_ascii_case("from");
    let keywords: Vec<&str> = raws
        .iter()
        .filter(is_from)
        .map(|raw| raw.keyword.text.as_str())
        .collect();
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
            // What is in two cases itself is told of elsewhere.
            let wanted = match keywords.get(index) {
                Some(&"from") => "as",
                Some(&"FROM") => "AS",
                _ => continue,
            };
            if word.text != wanted {
                found.push(Complaint::warning(
                    "FromAsCasing",
                    word.whole(),
                    format!("`{}` is not in the case of its FROM", word.text),
                    format!("write {wanted}"),
                ));
            }
        }
    }
}

/// By the words that BuildKit's rule has.
pub(super) fn is_secret(name: &str) -> bool {
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
