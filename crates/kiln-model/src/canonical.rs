//! Canonical JSON: RFC 8785 restricted to integers, which is what an identity is hashed over.

use serde::Serialize;
use serde_json::Value;

/// Why a value has no canonical form here.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    #[error("the number {0} is not an integer, and only integers have a canonical form here")]
    Fraction(serde_json::Number),
    #[error("the value cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

/// The canonical JSON of `value`: members ordered by UTF-16 code units (RFC 8785, section 3.2.3), no white
/// space, strings escaped as ECMAScript does (section 3.2.2.2), integers only.
pub fn canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let value = serde_json::to_value(value).map_err(CanonicalError::Json)?;
    let mut out = Vec::new();
    write(&value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            if number.is_f64() {
                return Err(CanonicalError::Fraction(number.clone()));
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => write_string(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(name, out)?;
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    // serde_json escapes exactly what ECMAScript's JSON.stringify does, with lower-case \u00xx.
    serde_json::to_writer(out, text).map_err(CanonicalError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_are_ordered_by_utf16_and_strings_escaped_as_in_rfc_8785() {
        // The ordering example of RFC 8785, section 3.2.3: U+1F600 sorts before U+FB33.
        let value = json!({"\u{fb33}": 1, "\u{1f600}": 2, "b": "\u{8}\u{1f}\u{20ac}/", "a": [true, null, -7]});
        let text = String::from_utf8(canonical_json(&value).unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"a\":[true,null,-7],\"b\":\"\\b\\u001f\u{20ac}/\",\"\u{1f600}\":2,\"\u{fb33}\":1}"
        );
    }

    #[test]
    fn fractions_are_refused() {
        assert!(matches!(
            canonical_json(&json!({"cpus": 0.5})),
            Err(CanonicalError::Fraction(_))
        ));
    }
}
