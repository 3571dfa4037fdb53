//! Names of users and groups, looked up in the image's own files.

use std::path::Path;

use crate::in_root;

/// A passwd file of a real image is a few kilobytes.
const PASSWD_LIMIT: u64 = 1 << 20;

/// `user`, `user:group` or `:group`, by the image's own files; a number needs none.
pub(super) fn owner(text: &str, view: &Path) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, primary) = match (user, user.parse::<u32>()) {
        // No image has to say who root is.
        ("" | "root", _) => (0, 0),
        (_, Ok(number)) => (number, number),
        (name, Err(_)) => line(view, "etc/passwd", name)?
            .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
            .ok_or_else(|| {
                format!(
                    "the image has no user `{name}` in /etc/passwd: use a number, or add it before"
                )
            })?,
    };
    let gid = match group.map(|group| (group, group.parse::<u32>())) {
        None => primary,
        Some(("" | "root", _)) => 0,
        Some((_, Ok(number))) => number,
        Some((name, Err(_))) => line(view, "etc/group", name)?
            .and_then(|fields| fields.get(2)?.parse().ok())
            .ok_or_else(|| {
                format!(
                    "the image has no group `{name}` in /etc/group: use a number, or add it before"
                )
            })?,
    };
    Ok((uid, gid))
}

/// The fields of the line of `name`, in a file of the image.
fn line(view: &Path, path: &str, name: &str) -> Result<Option<Vec<String>>, String> {
    let text = in_root::text(view, Path::new(path), PASSWD_LIMIT)
        .map_err(|error| format!("the image's /{path} can't be read: {error}"))?
        .unwrap_or_default();
    Ok(text
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
        .find(|fields| fields[0] == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_looked_up_in_the_image_and_never_outside() {
        let view = tempfile::tempdir().unwrap();
        let etc = view.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("passwd"), "app:x:1000:1001::/:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("/etc/group-of-nobody", etc.join("group")).unwrap();
        for (text, expected) in [
            ("app", Some((1000, 1001))),
            ("app:7", Some((1000, 7))),
            ("5", Some((5, 5))),
            ("5:6", Some((5, 6))),
            (":6", Some((0, 6))),
            ("root", Some((0, 0))),
            ("app:root", Some((1000, 0))),
            ("app:", Some((1000, 0))),
            ("none", None),
            ("app:none", None),
        ] {
            assert_eq!(owner(text, view.path()).ok(), expected, "{text}");
        }
    }
}
