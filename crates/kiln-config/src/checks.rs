//! What names, paths and commands of several blocks have to be.

use crate::reader::Reader;
use crate::value::At;

/// A name of the model's, with its rule as the message.
pub(crate) fn name<T>(reader: &mut Reader<'_>, label: &At<String>) -> Option<T>
where
    T: std::str::FromStr<Err = kiln_model::NameError>,
{
    match label.value.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let mut right: String = label
                .value
                .to_ascii_lowercase()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            right = right
                .trim_matches(|c: char| c == '-' || c.is_ascii_digit())
                .chars()
                .take(40)
                .collect();
            let help = if right.parse::<T>().is_ok() {
                format!("write \"{right}\"")
            } else {
                "give it another name".to_owned()
            };
            reader.bad_value(
                &format!("the {} name", error.what),
                format!("`{}`", label.value),
                label.span.clone(),
                "a lower-case letter, then at most 39 letters, digits or hyphens, no hyphen last",
                help,
            );
            None
        }
    }
}

/// Whether a path stays in the definition's folder.
pub(crate) fn inside(reader: &mut Reader<'_>, what: &str, path: &At<String>) -> bool {
    let good = !path.value.is_empty()
        && !path.value.starts_with('/')
        && !path.value.contains('\0')
        && path.value.split('/').all(|part| part != "..");
    if !good {
        reader.bad_value(
            what,
            format!("`{}`", path.value),
            path.span.clone(),
            "a path inside the definition's folder",
            "write it relative to kiln.hcl, without `..`",
        );
    }
    good
}

/// Absolute, and the same however it is resolved.
pub(crate) fn absolute(reader: &mut Reader<'_>, what: &str, path: &At<String>) -> bool {
    let good = path.value.starts_with('/')
        && !path.value.contains('\0')
        && path
            .value
            .split('/')
            .all(|part| part != ".." && part != ".");
    if !good {
        let help = if path.value.starts_with('/') || path.value.contains("..") {
            "write the path in full, without `.` and `..`".to_owned()
        } else {
            format!("write \"/{}\"", path.value)
        };
        reader.bad_value(
            what,
            format!("`{}`", path.value),
            path.span.clone(),
            "an absolute path",
            help,
        );
    }
    good
}

/// A name as Debian's useradd takes it, or a number.
pub(crate) fn user_name(reader: &mut Reader<'_>, what: &str, user: &At<String>) -> bool {
    let text = &user.value;
    let good = text.parse::<u32>().is_ok()
        || (text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte)
            }));
    if !good {
        reader.bad_value(
            what,
            format!("`{text}`"),
            user.span.clone(),
            "a user name (lower-case letters, digits, `_`, `-`) or a number",
            "write a name such as \"app\"",
        );
    }
    good
}

/// Each command of a `run` is a line for a shell. One that begins with a dash is an argument of the one before it, as in an exec form.
pub(crate) fn whole_lines(reader: &mut Reader<'_>, what: &str, lines: &[At<String>]) {
    let Some(part) = lines
        .iter()
        .skip(1)
        .find(|line| line.value.starts_with('-'))
    else {
        return;
    };
    let words: Vec<&str> = lines.iter().map(|line| line.value.as_str()).collect();
    reader.bad_value(
        &format!("an item of {what}"),
        format!("`{}`", part.value),
        part.span.clone(),
        "a whole command, as in a shell",
        format!(
            "write one text for a command and its arguments: \"{}\"",
            words.join(" ")
        ),
    );
}
