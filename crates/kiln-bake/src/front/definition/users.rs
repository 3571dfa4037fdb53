//! Users and groups written into the image's own files, without a program.

use std::io;
use std::path::Path;

use kiln_model::{ImageSpec, UserSpec};
use kiln_oci::{Entry, Tree};

use crate::error::BakeError;
use crate::in_root;

/// The layer that adds the users to what `view`, the image so far, has.
pub(crate) fn layer(image: &ImageSpec, view: &Path, date: i64) -> Result<Tree, BakeError> {
    let (mut passwd, mut group, mut shadow, mut gshadow) = (
        read(view, "passwd")?,
        read(view, "group")?,
        read(view, "shadow")?,
        read(view, "gshadow")?,
    );
    for user in &image.users {
        let failed = |reason: String| BakeError::User {
            image: image.name.to_string(),
            user: user.name.clone(),
            reason,
        };
        add(
            user,
            date,
            &mut passwd,
            &mut group,
            &mut shadow,
            &mut gshadow,
        )
        .map_err(failed)?;
    }
    let mut tree = Tree::new();
    crate::front::definition::copy::folder(&mut tree, view, Path::new("etc"))?;
    let files = [
        ("passwd", passwd, 0o644, 0),
        ("group", group, 0o644, 0),
        ("shadow", shadow, 0o640, 42),
        ("gshadow", gshadow, 0o640, 42),
    ];
    for (name, text, mode, gid) in files {
        let entry = Entry::bytes(text.into_bytes(), mode)
            .owner(0, gid)
            .mtime(date);
        tree.insert(Path::new("etc").join(name), entry)?;
    }
    Ok(tree)
}

/// A file of the image's `/etc`, empty where it is not there. The layer replaces the file: one that can't be read must not lose what it has.
fn read(view: &Path, name: &str) -> Result<String, BakeError> {
    let path = Path::new("etc").join(name);
    let bytes = match in_root::bytes(view, &path) {
        Err(error) if in_root::is_absent(&error) => return Ok(String::new()),
        read => read.map_err(BakeError::io(Path::new("/").join(&path)))?,
    };
    let no_text = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(bytes)
        .map_err(no_text)
        .map_err(BakeError::io(Path::new("/").join(&path)))
}

fn add(
    user: &UserSpec,
    date: i64,
    passwd: &mut String,
    group: &mut String,
    shadow: &mut String,
    gshadow: &mut String,
) -> Result<(), String> {
    let UserSpec { name, uid, gid } = user;
    let gid = gid.unwrap_or(*uid);
    let taken = |text: &str, field: usize, value: &str| {
        text.lines()
            .any(|line| line.split(':').nth(field) == Some(value))
    };
    if taken(passwd, 0, name) {
        return Err("the image has a user of that name already: use another".to_owned());
    }
    if taken(passwd, 2, &uid.to_string()) {
        return Err(format!(
            "the image has a user with uid {uid} already: use another"
        ));
    }
    passwd.push_str(&format!(
        "{name}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin\n"
    ));
    shadow.push_str(&format!("{name}:!:{}:0:99999:7:::\n", date / 86_400));
    if !taken(group, 2, &gid.to_string()) {
        if taken(group, 0, name) {
            return Err(
                "the image has a group of that name with another gid: use another name".to_owned(),
            );
        }
        group.push_str(&format!("{name}:x:{gid}:\n"));
        gshadow.push_str(&format!("{name}:!::\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_of_users_are_the_images_own_and_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (view, outside) = (folder.path().join("view"), folder.path().join("outside"));
        fs::create_dir_all(view.join("etc")).unwrap();
        fs::write(&outside, "host:x:7:7::/:/bin/sh\n").unwrap();
        symlink(&outside, view.join("etc/passwd")).unwrap();
        assert_eq!(read(&view, "passwd").unwrap(), "");
        fs::write(view.join("etc/group"), b"caf\xe9:x:1:\n").unwrap();
        let error = read(&view, "group").unwrap_err();
        assert!(
            matches!(&error, BakeError::Io { path, .. } if path == Path::new("/etc/group")),
            "{error}"
        );
        assert_eq!(read(&view, "shadow").unwrap(), "");
    }

    #[test]
    fn a_user_gets_a_group_and_what_is_taken_is_refused() {
        let mut files = ["root:x:0:0::/:/bin/sh\n", "root:x:0:\n", "", ""].map(str::to_owned);
        let [passwd, group, shadow, gshadow] = &mut files;
        let mut user = UserSpec {
            name: "app".into(),
            uid: 1000,
            gid: None,
        };
        add(&user, 86_400, passwd, group, shadow, gshadow).unwrap();
        assert!(passwd.ends_with("app:x:1000:1000::/nonexistent:/usr/sbin/nologin\n"));
        assert!(group.ends_with("app:x:1000:\n") && shadow == "app:!:1:0:99999:7:::\n");
        assert!(
            add(&user, 0, passwd, group, shadow, gshadow)
                .unwrap_err()
                .contains("name")
        );
        user.name = "other".into();
        assert!(
            add(&user, 0, passwd, group, shadow, gshadow)
                .unwrap_err()
                .contains("1000")
        );
    }
}
