//! `user`, `copy` and `allow_leak` of an image.

use kiln_model::{CopySpec, UserSpec};

use crate::checks::{absolute, inside, user_name};
use crate::reader::Reader;
use crate::section::{Labelled, Section, Shape};

const USER: Shape = Shape {
    attributes: &["uid", "gid"],
    blocks: &[],
    later: &[],
};

const COPY: Shape = Shape {
    attributes: &["from", "to", "owner"],
    blocks: &[],
    later: &[
        ("mode", "set the mode of the file itself"),
        ("exclude", "copy folders that hold only what is wanted"),
    ],
};

/// `RULE:PLACE`, as the error of a leak prints it. Which rules there are is the bake's to know.
pub(crate) fn allow_leak(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<String> {
    let excuses = section.strings(reader, "allow_leak");
    let mut good = Vec::new();
    for excuse in excuses.map(|list| list.value).unwrap_or_default() {
        let is_whole = excuse
            .value
            .split_once(':')
            .is_some_and(|(rule, place)| !rule.is_empty() && !place.is_empty());
        if is_whole {
            good.push(excuse.value);
        } else {
            reader.bad_value(
                &format!("an item of {}", section.what("allow_leak")),
                format!("`{}`", excuse.value),
                excuse.span,
                "a rule and the place of what it found",
                "write it as the bake's error does, such as \"private-key:/opt/app/test.key\"",
            );
        }
    }
    good
}

pub(crate) fn user(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<UserSpec> {
    let place = format!("`user \"{}\"`", labelled.label.value);
    let section = Section::read(
        reader,
        &USER,
        &labelled.block.body,
        place,
        labelled.header.clone(),
    );
    section.require(reader, "uid", "uid = 1000");
    // 65534 is nobody's, and (uid_t)-1 is no user at all.
    let uid = section.whole(reader, "uid", 1, 65_533);
    let gid = section.whole(reader, "gid", 1, 65_533);
    let named = user_name(reader, "the user name", &labelled.label);
    if labelled.label.value == "root" {
        reader.bad_value(
            "the user name",
            "`root`",
            labelled.label.span.clone(),
            "a user that the base does not have",
            "write another name",
        );
        return None;
    }
    named.then_some(())?;
    Some(UserSpec {
        name: labelled.label.value.clone(),
        uid: uid?.value,
        gid: gid.map(|at| at.value),
    })
}

pub(crate) fn copy(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Option<CopySpec> {
    let section = Section::read(
        reader,
        &COPY,
        &labelled.block.body,
        "`copy`".to_owned(),
        labelled.header.clone(),
    );
    section.require(reader, "from", "from = \"app/\"");
    section.require(reader, "to", "to = \"/opt/app\"");
    let from = section
        .string(reader, "from")
        .filter(|from| inside(reader, &section.what("from"), from));
    let to = section
        .string(reader, "to")
        .filter(|to| absolute(reader, &section.what("to"), to));
    let owner = section
        .string(reader, "owner")
        .filter(|owner| user_name(reader, &section.what("owner"), owner));
    Some(CopySpec {
        from: from?.value,
        to: to?.value,
        owner: owner.map(|at| at.value),
    })
}
