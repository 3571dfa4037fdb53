//! Files of the definition's folder, and the environment.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use super::Kind::{Map, Text};
use super::hash::{base64_of, hex_of};
use super::{Arguments, Fault, Function, fault, function, pattern};
use crate::reader::Reader;
use crate::value::Value;
use crate::{Problem, Source, template};

pub(super) const FUNCTIONS: &[Function] = &[
    function("basename", &[("path", Text)], |_, a| {
        let path = a.text(0).trim_end_matches('/');
        let name = path.rsplit('/').next().unwrap_or(path);
        Ok(Value::text_of(name))
    }),
    function("dirname", &[("path", Text)], |_, a| {
        Ok(Value::text_of(match a.text(0).rsplit_once('/') {
            None => ".",
            Some(("", _)) => "/",
            Some((folder, _)) => folder,
        }))
    }),
    function("env", &[("name", Text)], env),
    function("file", &[("path", Text)], |reader, a| {
        text(reader, a.text(0)).map(Value::String)
    }),
    function("filebase64", &[("path", Text)], |reader, a| {
        Ok(Value::String(STANDARD.encode(bytes(reader, a.text(0))?)))
    }),
    function("filebase64sha256", &[("path", Text)], |reader, a| {
        base64_of::<Sha256>(&bytes(reader, a.text(0))?)
    }),
    function("filebase64sha512", &[("path", Text)], |reader, a| {
        base64_of::<Sha512>(&bytes(reader, a.text(0))?)
    }),
    function("fileexists", &[("path", Text)], |reader, a| {
        Ok(Value::Bool(bytes(reader, a.text(0)).is_ok()))
    }),
    function("filemd5", &[("path", Text)], |reader, a| {
        hex_of::<Md5>(&bytes(reader, a.text(0))?)
    }),
    function("filesha1", &[("path", Text)], |reader, a| {
        hex_of::<Sha1>(&bytes(reader, a.text(0))?)
    }),
    function("filesha256", &[("path", Text)], |reader, a| {
        hex_of::<Sha256>(&bytes(reader, a.text(0))?)
    }),
    function("filesha512", &[("path", Text)], |reader, a| {
        hex_of::<Sha512>(&bytes(reader, a.text(0))?)
    }),
    function("fileset", &[("path", Text), ("pattern", Text)], fileset),
    function(
        "templatefile",
        &[("path", Text), ("values", Map)],
        |reader, a| {
            let name = a.text(0).to_owned();
            let text = text(reader, &name)?;
            filled(reader, a, Source { name, text })
        },
    ),
    function(
        "templatestring",
        &[("template", Text), ("values", Map)],
        |reader, a| {
            let name = "the template".to_owned();
            let text = a.text(0).to_owned();
            filled(reader, a, Source { name, text })
        },
    ),
];

/// With the values of the second argument.
fn filled(reader: &mut Reader<'_>, a: &Arguments, source: Source) -> Result<Value, Fault> {
    let values = a.map(1).into_iter().flatten();
    let values = values
        .map(|(name, entry)| (name.clone(), entry.item.value.clone()))
        .collect();
    template::file(reader, source, values, &a.span)
        .map(Value::String)
        .ok_or(Fault::Reported)
}

fn bytes(reader: &mut Reader<'_>, path: &str) -> Result<Vec<u8>, Fault> {
    // `path.module` is `.`, and a file has one name.
    let plain = path.trim_start_matches("./").to_owned();
    match reader.outside.file(&plain) {
        Ok(bytes) => {
            reader.files.insert(plain);
            Ok(bytes)
        }
        Err(why) => Err(Fault::File {
            path: path.to_owned(),
            why,
        }),
    }
}

/// The files below a folder whose paths fit the pattern, in order.
fn fileset(reader: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let pattern = a.text(1);
    let Some(pattern) = pattern::Pattern::new(pattern) else {
        return fault(
            1,
            format!("`{pattern}`"),
            "a pattern of `*`, `**`, `?`, `[a-z]` and `{a,b}`",
            "close each `[` and `{`",
        );
    };
    let folder = a.text(0).trim_start_matches("./").trim_end_matches('/');
    let folder = if folder == "." { "" } else { folder };
    let all = reader.outside.files(folder).map_err(|why| Fault::File {
        path: a.text(0).to_owned(),
        why,
    })?;
    // Which there are, is an input like what is in them.
    reader
        .files
        .insert(if folder.is_empty() { "." } else { folder }.to_owned());
    let fitting = all.into_iter().filter(|path| pattern.fits(path));
    Ok(a.list_of_texts(fitting))
}

fn text(reader: &mut Reader<'_>, path: &str) -> Result<String, Fault> {
    String::from_utf8(bytes(reader, path)?).map_err(|_| Fault::File {
        path: path.to_owned(),
        why: "it is no UTF-8 text; `filebase64` takes any file".to_owned(),
    })
}

fn env(reader: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    if !reader.in_default {
        reader.report(
            Problem::Unsupported {
                what: "`env` outside of a variable's default".to_owned(),
            },
            a.span.clone(),
            "what is baked must not depend on the environment unseen",
            "write variable \"name\" { default = env(\"NAME\") }, and `var.name` here",
        );
        return Err(Fault::Reported);
    }
    // As in Packer: what is not set is empty.
    let value = reader.outside.variable(a.text(0)).unwrap_or_default();
    Ok(Value::String(value))
}
