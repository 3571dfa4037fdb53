//! `RUN --mount=…`: comma-separated fields, each with its place.

use super::{Complaint, Run, Text};
use crate::suggest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// Who else may have a cache while a step has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    /// Another one is made for who comes meanwhile.
    Private,
    /// Who comes meanwhile waits.
    Locked,
}

/// One mount of a RUN, its variables replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    pub from: Option<Text>,
    pub source: Option<String>,
    pub target: Option<String>,
    pub read_only: bool,
    pub id: Option<String>,
    pub sharing: Sharing,
    pub required: bool,
    /// Bytes.
    pub size: Option<u64>,
    /// `Some("")`: the variable has the secret's own name.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

impl MountKind {
    fn name(self) -> &'static str {
        KINDS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }
}

impl Run {
    /// What its mounts take from, before variables are replaced, which they are not there. What is wrong with them is told elsewhere.
    pub fn mounted_from(&self) -> Vec<String> {
        let values = self.flags.iter().filter(|flag| flag.name == "mount");
        let values = values.filter_map(|flag| flag.value.as_ref());
        let fields = values.flat_map(|value| fields(value).unwrap_or_default());
        fields
            .filter_map(|field| {
                let (key, value) = field.text.split_once('=')?;
                let is_from = key.trim().eq_ignore_ascii_case("from");
                is_from.then(|| value.to_owned())
            })
            .collect()
    }
}

/// Reads the value of one `--mount`; `expand` replaces the variables of a field's value.
pub fn mount(
    text: &Text,
    expand: &mut dyn FnMut(&Text) -> Result<String, Complaint>,
) -> Result<Mount, Complaint> {
    let mut mount = Mount {
        kind: MountKind::Bind,
        from: None,
        source: None,
        target: None,
        read_only: false,
        id: None,
        sharing: Sharing::Shared,
        required: false,
        size: None,
        env: None,
        mode: None,
        uid: None,
        gid: None,
    };
    let mut read_only = None;
    // Keys that only some kinds have, looked at when the kind is known.
    let mut given: Vec<(&str, Text)> = Vec::new();
    for field in fields(text)? {
        let (key, value) = match field.text.find('=') {
            Some(at) => (
                field.slice(0..at),
                Some(field.slice(at + 1..field.text.len())),
            ),
            None => (field.clone(), None),
        };
        let name = key.text.trim().to_lowercase();
        let Some(known) = KEYS.into_iter().find(|known| *known == name) else {
            let help = match suggest::nearest(&name, KEYS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are {}", KEYS.join(", ")),
            };
            return Err(key.complain(format!("a mount has no key `{name}`"), help));
        };
        given.push((known, field.clone()));
        if known == "from" {
            let value = value.ok_or_else(|| lacks(&key))?;
            if value.text.contains('$') {
                return Err(value.complain(
                    "variables are not replaced in the `from` of a mount",
                    "make it a stage: FROM $NAME AS stage",
                ));
            }
            mount.from = Some(value).filter(|value| !value.text.is_empty());
            continue;
        }
        let place = value.clone();
        let value = value.as_ref().map(&mut *expand).transpose()?;
        let flag = || match (&value, &place) {
            (None, _) => Ok(true),
            (Some(value), Some(place)) => match value.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                _ => Err(place.complain(format!("`{known}` is true or false"), "")),
            },
            (Some(_), None) => Ok(true),
        };
        match known {
            "readonly" | "ro" => {
                read_only = Some(flag()?);
                continue;
            }
            "readwrite" | "rw" => {
                read_only = Some(!flag()?);
                continue;
            }
            "required" => {
                mount.required = flag()?;
                continue;
            }
            _ => {}
        }
        let (Some(value), Some(place)) = (value, place) else {
            return Err(lacks(&key));
        };
        let number = |radix: u32| {
            u32::from_str_radix(&value, radix).map_err(|_| {
                place.complain(
                    format!("`{value}` can't be the {known} of a mount"),
                    if radix == 8 {
                        "write it in octal, as 0755"
                    } else {
                        "write a number"
                    },
                )
            })
        };
        match known {
            "type" => {
                let lower = value.to_lowercase();
                mount.kind = KINDS
                    .iter()
                    .find(|(name, _)| *name == lower)
                    .map(|(_, kind)| *kind)
                    .ok_or_else(|| {
                        let names = KINDS.map(|(name, _)| name);
                        place.complain(
                            format!("there is no mount of the type `{value}`"),
                            match suggest::nearest(&lower, names) {
                                Some(near) => format!("did you mean `{near}`?"),
                                None => format!("the types are {}", names.join(", ")),
                            },
                        )
                    })?;
            }
            "source" | "src" => mount.source = Some(value).filter(|value| !value.is_empty()),
            "target" | "dst" | "destination" => {
                mount.target = Some(value).filter(|value| !value.is_empty());
            }
            "id" => mount.id = Some(value).filter(|value| !value.is_empty()),
            "sharing" => {
                mount.sharing = match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        return Err(place.complain(
                            format!("a cache can't be shared as `{value}`"),
                            "it is shared, private or locked",
                        ));
                    }
                };
            }
            "size" => {
                mount.size = Some(bytes(&value).ok_or_else(|| {
                    place.complain(
                        format!("`{value}` is no size"),
                        "write a number and b, k, m, g or t: size=64m",
                    )
                })?);
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            "env" => mount.env = Some(value),
            _ => {}
        }
    }
    let kind = mount.kind;
    mount.read_only = read_only.unwrap_or(!matches!(kind, MountKind::Cache | MountKind::Tmpfs));
    for (key, field) in &given {
        let fits = match *key {
            "size" => kind == MountKind::Tmpfs,
            "required" => matches!(kind, MountKind::Secret | MountKind::Ssh),
            "mode" | "uid" | "gid" => {
                matches!(kind, MountKind::Secret | MountKind::Ssh | MountKind::Cache)
            }
            "sharing" => kind == MountKind::Cache,
            "env" => kind == MountKind::Secret,
            "from" => !matches!(kind, MountKind::Secret | MountKind::Ssh),
            "source" | "src" => kind != MountKind::Ssh,
            _ => true,
        };
        if !fits {
            return Err(field.complain(
                format!("a mount of the type {} has no `{key}`", kind.name()),
                "take it out",
            ));
        }
    }
    if kind == MountKind::Secret {
        if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            return Err(text.complain(
                "the mount does not say which secret",
                "write --mount=type=secret,id=NAME, and give it with --secret id=NAME,src=FILE",
            ));
        }
        if mount.source.is_some() && mount.id.is_some() {
            return Err(text.complain("`source` and `id` both name the secret", "keep one of them"));
        }
    }
    Ok(mount)
}

fn lacks(key: &Text) -> Complaint {
    key.complain(
        format!("`{}` of a mount has no value", key.text),
        format!("write {}=VALUE", key.text),
    )
}

/// What is between commas; in double quotes a comma is one of the text.
fn fields(text: &Text) -> Result<Vec<Text>, Complaint> {
    let bytes = text.text.as_bytes();
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        if bytes.get(start) == Some(&b'"') {
            let end = text.text[start + 1..]
                .find('"')
                .map(|at| start + 1 + at)
                .ok_or_else(|| text.complain("a quote is not closed", "close it"))?;
            found.push(text.slice(start + 1..end));
            match bytes.get(end + 1) {
                None => return Ok(found),
                Some(b',') => start = end + 2,
                Some(_) => {
                    return Err(text.complain(
                        "there is something between a quote and the next comma",
                        "put the whole field into quotes",
                    ));
                }
            }
        } else {
            let end = text.text[start..]
                .find(',')
                .map_or(bytes.len(), |at| start + at);
            found.push(text.slice(start..end));
            if end == bytes.len() {
                return Ok(found);
            }
            start = end + 1;
        }
    }
}

/// As docker reads sizes: all units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim().to_lowercase();
    let unit = unit.strip_suffix("ib").unwrap_or(&unit);
    let unit = match unit {
        "b" => unit,
        unit => unit.strip_suffix('b').unwrap_or(unit),
    };
    let power = match unit {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some((number * 1024f64.powi(power)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mount, Complaint> {
        mount(&Text::of(text, 0), &mut |value| {
            Ok(value.text.replace("$X", "x"))
        })
    }

    #[test]
    fn a_mount_is_read_with_all_its_keys() {
        let bind = read("source=a,\"dst=/b,$X\"").unwrap();
        assert_eq!(
            (bind.kind, bind.read_only, bind.source.as_deref()),
            (MountKind::Bind, true, Some("a"))
        );
        assert_eq!(bind.target.as_deref(), Some("/b,x"));
        let cache =
            read("type=cache,id=$X,target=/c,sharing=LOCKED,mode=0700,uid=5,gid=6,ro").unwrap();
        assert_eq!(
            (cache.kind, cache.sharing, cache.mode, cache.uid, cache.gid),
            (
                MountKind::Cache,
                Sharing::Locked,
                Some(0o700),
                Some(5),
                Some(6)
            )
        );
        assert!(cache.read_only && !read("type=cache,target=/c").unwrap().read_only);
        let tmpfs = read("type=tmpfs,target=/t,size=1.5m,readonly=false").unwrap();
        assert_eq!((tmpfs.size, tmpfs.read_only), (Some(3 << 19), false));
        let secret = read("type=secret,id=a,env=,required").unwrap();
        assert_eq!(
            (secret.env.as_deref(), secret.required, secret.read_only),
            (Some(""), true, true)
        );
    }

    #[test]
    fn what_is_wrong_with_a_mount_is_told_at_its_field() {
        for (text, what, span) in [
            ("type=bnd", "no mount of the type", 5..8),
            ("target=/a,sorce=b", "no key `sorce`", 10..15),
            ("target", "no value", 0..6),
            ("type=cache,sharing=x", "can't be shared", 19..20),
            ("size=1m,target=/a", "type bind has no `size`", 0..7),
            ("type=cache,required", "has no `required`", 11..19),
            ("type=tmpfs,mode=1", "has no `mode`", 11..17),
            ("type=secret,id=a,from=b", "has no `from`", 17..23),
            ("type=ssh,source=/a", "has no `source`", 9..18),
            ("from=$X", "not replaced", 5..7),
            ("type=secret", "which secret", 0..11),
            ("type=secret,id=a,src=b", "both name", 0..22),
            ("type=cache,mode=9", "can't be the mode", 16..17),
            ("ro=maybe", "true or false", 3..8),
            ("\"a", "not closed", 0..2),
        ] {
            let complaint = read(text).unwrap_err();
            assert!(complaint.what.contains(what), "{text}: {complaint:?}");
            assert_eq!(complaint.span, span, "{text}");
        }
    }

    #[test]
    fn sizes_are_dockers() {
        for (text, expected) in [
            ("10", Some(10)),
            ("10b", Some(10)),
            ("1k", Some(1024)),
            ("1KiB", Some(1024)),
            ("2 MB", Some(2 << 20)),
            ("x", None),
            ("1x", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
