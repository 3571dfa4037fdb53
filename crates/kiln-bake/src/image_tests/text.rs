use kiln_model::TextCheck;

/// What is wrong with a text, as in "the body …".
pub(super) fn text_failures<'a>(what: &str, text: &'a str, check: &'a TextCheck) -> Vec<String> {
    let TextCheck {
        contains,
        matches,
        equals,
    } = check;
    // Commands end what they say with an end of line, which no one means to ask for.
    let bare = |text: &'a str| text.strip_suffix('\n').unwrap_or(text);
    let mut failures = Vec::new();
    for part in contains.iter().filter(|part| !text.contains(*part)) {
        failures.push(format!(
            "{what} does not contain {part:?}: it is {}",
            shown(text)
        ));
    }
    for pattern in matches {
        // One that is none was refused with the definition.
        let found = regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(bare(text)));
        if !found {
            failures.push(format!(
                "{what} does not match {pattern:?}: it is {}",
                shown(text)
            ));
        }
    }
    if let Some(expected) = equals
        && bare(expected) != bare(text)
    {
        failures.push(format!(
            "{what} is {}, and {expected:?} is expected",
            shown(text)
        ));
    }
    failures
}

/// As much of a text as an error has room for.
fn shown(text: &str) -> String {
    const ROOM: usize = 300;
    match text.char_indices().nth(ROOM) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_what_a_test_says_of_it() {
        let check = |contains: &[&str], matches: &[&str], equals: Option<&str>| TextCheck {
            contains: contains.iter().map(|part| (*part).to_owned()).collect(),
            matches: matches.iter().map(|part| (*part).to_owned()).collect(),
            equals: equals.map(str::to_owned),
        };
        let right = [
            check(&[], &[], None),
            check(&["ell", "hello"], &["^h.l+o$"], Some("hello")),
            check(&[], &[], Some("hello\n")),
        ];
        for right in &right {
            assert_eq!(
                text_failures("it", "hello\n", &right.clone()),
                Vec::<String>::new()
            );
        }
        let wrong = check(&["x", "h"], &["^e"], Some("hello "));
        let failures = text_failures("the body", "hello", &wrong);
        assert_eq!(
            failures,
            [
                "the body does not contain \"x\": it is \"hello\"",
                "the body does not match \"^e\": it is \"hello\"",
                "the body is \"hello\", and \"hello \" is expected",
            ]
        );
        assert!(shown(&"ä".repeat(1000)).ends_with("ä\"…"));
    }
}
