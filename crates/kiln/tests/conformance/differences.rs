//! Where kiln is meant to differ from the peer, each with its reason. An entry that no longer differs fails its case.

use crate::case::Case;

/// BuildKit gives the files to root without a word.
const UNKNOWN_OWNER: &str =
    "the reference: a name of --chown that the image does not know fails the build";
const ATTRIBUTES: &str =
    "containerd's writer of layers keeps security.capability alone; kiln keeps all attributes";
/// BuildKit applies --exclude below a source only.
const EXCLUDED_SOURCE: &str =
    "the reference: `COPY --exclude=*.txt hom* /mydir/` leaves out the files of that name";
const EMPTY_LAYER: &str = "BuildKit writes an empty layer; the files are the same";
const ROOT_FOLDER: &str = "containerd's writer of layers has no entry for `/`; kiln keeps its mode";
const LINKED_TO_BASE: &str = "containerd's writer of layers leaves out what is the same file as before, and the link with it";
const UNKNOWN_TRIGGER: &str =
    "BuildKit keeps what no image on top of it could be baked with; kiln says so at once";
const STAGE_NUMBER: &str =
    "docker's first builder took the number of a stage as a target; nothing else can be meant";
const HOST_NAME: &str = "each sandbox is called after who made it";
const DEVICES: &str = "no step and no instance of kiln may make or use a device";
const LEAVING: &str =
    "an archive with a path that leads out of it is refused, as one that means harm";
const INSIDE_LINK: &str = "a link in an archive is one in the image: what is below it is put where it leads, never outside";
const WHITEOUT: &str =
    "BuildKit takes the file for a mark of a layer, and deletes one of the image";
const FOLDER_HISTORY: &str =
    "BuildKit puts an entry for the folder's layer behind all others; it is no instruction's";
const FOLDER_PLATFORM: &str =
    "BuildKit has no platform for such an image and can't write it; the folder's files are clear";

const NO_UTF8: &str = "a text that is no UTF-8 can't be written into an image's configuration, and steps would see another one";
const LINKED_OWNER: &str =
    "BuildKit looks for the name in the linked layer itself, which has no /etc/passwd";

/// (case, what differs, why).
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("add/archive-escape", "result", LEAVING),
    ("add/archive-link-escape", "result", INSIDE_LINK),
    ("add/archive-whiteouts", "result", WHITEOUT),
    ("add/archive-xattr", "/srv/u", ATTRIBUTES),
    ("chown/name-without-passwd", "result", UNKNOWN_OWNER),
    ("chown/overflow", "result", UNKNOWN_OWNER),
    ("chown/unknown-group", "result", UNKNOWN_OWNER),
    ("chown/unknown-user", "result", UNKNOWN_OWNER),
    ("exclude/file-source", "/srv/a.txt", EXCLUDED_SOURCE),
    ("exclude/file-source", "/two/b.txt", EXCLUDED_SOURCE),
    ("exclude/from-stage", "/opt/marked", ATTRIBUTES),
    ("from/folder", "history", FOLDER_HISTORY),
    ("from/folder-for-base", "result", FOLDER_PLATFORM),
    ("from/tree", "/opt/marked", ATTRIBUTES),
    ("link/named-owner", "result", LINKED_OWNER),
    ("onbuild/unknown", "result", UNKNOWN_TRIGGER),
    ("parse/latin1-env", "result", NO_UTF8),
    ("parse/latin1-heredoc", "result", NO_UTF8),
    ("run/chmod-only", "/", ROOT_FOLDER),
    ("run/link-to-base-file", "/opt/tool/x2", LINKED_TO_BASE),
    ("copy/attributes", "/marked", ATTRIBUTES),
    ("run/hostname", "/name", HOST_NAME),
    ("run/rights", "/dev-node", DEVICES),
    ("run/rights", "/rights", DEVICES),
    ("stages/target-index", "result", STAGE_NUMBER),
    ("workdir/existing", "history", EMPTY_LAYER),
];

pub(crate) fn of(case: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    DIFFERENCES
        .iter()
        .filter(move |(name, _, _)| *name == case)
        .map(|(_, what, why)| (*what, *why))
}

/// Entries about cases that are not there.
pub(crate) fn unknown(cases: &[Case]) -> Vec<&'static str> {
    DIFFERENCES
        .iter()
        .map(|(name, _, _)| *name)
        .filter(|name| !cases.iter().any(|case| case.name == *name))
        .collect()
}
