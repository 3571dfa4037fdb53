//! Who an application runs as: names looked up in the image's own files, from inside its root.

use std::fs::File;
use std::io::Read;

/// A passwd file of a real image is a few kilobytes.
const LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks `user` up in `/etc/passwd` and `/etc/group` of the present root.
pub(crate) fn look_up(user: &str) -> Result<Identity, String> {
    resolve(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut text = String::new();
    if let Ok(file) = File::open(path) {
        // A file that is no text names nobody.
        let _ = file.take(LIMIT).read_to_string(&mut text);
    }
    text
}

fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, wanted_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| {
            fields.len() >= 6
                && (fields[0] == name
                    || number.is_some() && fields[2].parse::<u32>().ok() == number)
        });
    let (uid, primary, login, home) = match (&entry, number) {
        (Some(fields), _) => {
            let field = |index: usize| {
                fields[index].parse::<u32>().map_err(|_| {
                    format!(
                        "the entry of `{}` in the image's /etc/passwd has no numbers",
                        fields[0]
                    )
                })
            };
            (field(2)?, field(3)?, fields[0], fields[5].to_owned())
        }
        (None, Some(number)) => (number, 0, "", "/".to_owned()),
        (None, None) => {
            return Err(format!(
                "the image has no user `{name}` in /etc/passwd: add a `user` block, or use a number"
            ));
        }
    };
    let groups = || {
        group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
    };
    let gid = match wanted_group {
        None => primary,
        Some(wanted) => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => groups()
                .find(|fields| fields.len() >= 3 && fields[0] == wanted)
                .and_then(|fields| fields[2].parse().ok())
                .ok_or_else(|| format!("the image has no group `{wanted}` in /etc/group"))?,
        },
    };
    let mut supplementary: Vec<u32> = if wanted_group.is_some() || login.is_empty() {
        Vec::new()
    } else {
        groups()
            .filter(|fields| {
                fields.len() >= 4 && fields[3].split(',').any(|member| member == login)
            })
            .filter_map(|fields| fields[2].parse().ok())
            .collect()
    };
    supplementary.retain(|group| *group != gid);
    supplementary.insert(0, gid);
    Ok(Identity {
        uid,
        gid,
        groups: supplementary,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/false\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nssl:x:50:other,app\n";

    #[test]
    fn names_and_numbers_are_looked_up_in_the_image() {
        let app = Identity {
            uid: 1000,
            gid: 1001,
            groups: vec![1001, 50],
            home: "/home/app".into(),
        };
        assert_eq!(resolve("app", PASSWD, GROUP), Ok(app.clone()));
        assert_eq!(resolve("1000", PASSWD, GROUP), Ok(app));
        let by_group = resolve("app:ssl", PASSWD, GROUP).unwrap();
        assert_eq!((by_group.gid, by_group.groups), (50, vec![50]));
        let unknown = resolve("4242:7", PASSWD, GROUP).unwrap();
        assert_eq!((unknown.uid, unknown.gid), (4242, 7));
        assert_eq!(resolve("", PASSWD, GROUP).unwrap().uid, 0);
        assert!(
            resolve("nobody", PASSWD, GROUP)
                .unwrap_err()
                .contains("nobody")
        );
        assert!(resolve("app:none", PASSWD, GROUP).is_err());
    }
}
