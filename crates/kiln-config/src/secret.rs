//! `secret "NAME" { from = … }` of a service: where the value of an environment variable is, and never what it is.

use hcl_edit::Span;
use kiln_model::SecretSpec;

use crate::environment::{OWN, is_variable_name};
use crate::expression::evaluate;
use crate::reader::Reader;
use crate::section::{Labelled, Section, Shape};
use crate::suggest;

const SHAPE: Shape = Shape {
    attributes: &["from"],
    blocks: &[],
    later: &[(
        "value",
        "a secret is never in a definition: write it to an encrypted file, and `from = \"file:secrets.age#name\"`",
    )],
};
/// Where secrets can be.
const SCHEMES: [&str; 1] = ["file"];

/// The name with its place, and where the value is.
pub(crate) fn read(reader: &mut Reader<'_>, block: &Labelled<'_>) -> Option<(String, SecretSpec)> {
    let label = &block.label;
    let place = format!("`secret \"{}\"`", label.value);
    let section = Section::read_lazily(
        reader,
        &SHAPE,
        &block.block.body,
        place,
        block.header.clone(),
        &["from"],
    );
    section.require(reader, "from", "from = \"file:secrets.age#name\"");
    let name = name(reader, block);
    let expression = section.expression("from")?;
    // Here alone a sensitive value may stand.
    let (spec, taint) = reader.apart(|reader| {
        let found = evaluate(reader, expression)?;
        let what = section.what("from");
        let Some(text) = found.value.text() else {
            reader.wrong_type(&what, &found.value, found.span, "a string");
            return None;
        };
        let span = expression.span().unwrap_or(found.span);
        source(reader, &what, &text, span)
    });
    let spec = SecretSpec {
        sensitive: taint.is_some(),
        ..spec?
    };
    Some((name?, spec))
}

fn name(reader: &mut Reader<'_>, block: &Labelled<'_>) -> Option<String> {
    let label = &block.label;
    let (expected, help) = if !is_variable_name(&label.value) {
        (
            "letters, digits and `_`, no digit first",
            "name the environment variable that holds it",
        )
    } else if OWN.contains(&label.value.as_str()) {
        (
            "a name that kiln does not set itself",
            "name another environment variable",
        )
    } else {
        return Some(label.value.clone());
    };
    let found = format!("`{}`", label.value);
    reader.bad_value(
        "the name of a secret",
        found,
        label.span.clone(),
        expected,
        help,
    );
    None
}

/// `file:PATH#KEY`, or `file:PATH` for a file that is one secret.
fn source(
    reader: &mut Reader<'_>,
    what: &str,
    text: &str,
    span: std::ops::Range<usize>,
) -> Option<SecretSpec> {
    const EXAMPLE: &str = "file:secrets.age#name";
    let mut wrong = |expected: &str, help: String| {
        reader.bad_value(what, format!("`{text}`"), span.clone(), expected, help);
        None
    };
    let Some((scheme, rest)) = text.split_once(':') else {
        return wrong(
            "where the secret is, as file:PATH#KEY",
            format!("write \"{EXAMPLE}\""),
        );
    };
    if !SCHEMES.contains(&scheme) {
        let near = suggest::nearest(scheme, SCHEMES).unwrap_or("file");
        return wrong(
            "file:PATH#KEY: there is no other place for a secret yet",
            format!("write \"{near}:PATH#KEY\""),
        );
    }
    let (file, key) = match rest.split_once('#') {
        Some((file, key)) => (file, Some(key)),
        None => (rest, None),
    };
    let is_inside = !file.is_empty()
        && !file.starts_with('/')
        && file.split('/').all(|part| part != "..")
        && !file.contains('\0');
    if !is_inside {
        return wrong(
            "a file inside the definition's folder",
            format!("write it relative to the definition, without `..`, as in \"{EXAMPLE}\""),
        );
    }
    if key.is_some_and(str::is_empty) {
        return wrong(
            "a name behind the `#`",
            "name the secret in the file, or leave `#` out for the whole file".to_owned(),
        );
    }
    Some(SecretSpec {
        file: file.to_owned(),
        key: key.map(str::to_owned),
        sensitive: false,
    })
}
