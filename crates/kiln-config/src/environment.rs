//! The variables that an instance is told.

use std::collections::BTreeMap;

use crate::reader::Reader;
use crate::section::Section;
use crate::value::At;

/// What kiln itself tells an instance.
pub(crate) const OWN: [&str; 4] = ["KILN_SERVICE", "KILN_RELEASE", "KILN_INSTANCE", "PORT"];

/// One that any program can read (POSIX 8.1).
pub(crate) fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Names that any program can read, and none of kiln's own where it would win anyway.
pub(crate) fn environment_names(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    refuse_own: bool,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, At { value, span }) in section.map(reader, "env") {
        if !is_variable_name(&name) {
            reader.bad_value(
                &section.what("env"),
                format!("the name `{name}`"),
                span,
                "letters, digits and `_`, no digit first",
                "rename it",
            );
        } else if refuse_own && OWN.contains(&name.as_str()) {
            reader.bad_value(
                &section.what("env"),
                format!("the name `{name}`"),
                span,
                "a name that kiln does not set itself",
                "leave it out: kiln sets it for each instance",
            );
        } else if value.contains('\0') {
            reader.bad_value(
                &section.what("env"),
                format!("a NUL byte in `{name}`"),
                span,
                "text",
                "remove the NUL byte",
            );
        } else {
            env.insert(name, value);
        }
    }
    env
}
