//! The nearest right name for a wrong one.

/// The candidate that differs least from `name`, if it is near enough to have been meant.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let near = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        // Swapping two neighbours is one edit.
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= near
                || (name.len() >= 3 && (candidate.starts_with(name) || name.starts_with(candidate)))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// kiln's words for what Dockerfiles, Compose, Kubernetes, Packer and Terraform call otherwise, in small letters alone.
const WORDS: &[(&str, &[&str])] = &[
    ("args", &["buildargs"]),
    ("cmd", &["command"]),
    ("command", &["cmd", "exec"]),
    ("copy", &["add", "file", "files"]),
    ("dockerfile", &["build", "containerfile"]),
    ("drain", &["deregistrationdelay", "prestop"]),
    ("env", &["envs", "variables"]),
    ("from", &["base", "image", "source", "src"]),
    ("listen", &["hostport", "publish"]),
    ("owner", &["chown", "user"]),
    ("port", &["containerport", "expose"]),
    (
        "probe",
        &[
            "health",
            "healthcheck",
            "liveness",
            "livenessprobe",
            "readiness",
            "readinessprobe",
            "startupprobe",
        ],
    ),
    ("progress_deadline", &["progressdeadlineseconds"]),
    ("replicas", &["count", "desiredcount", "instances", "scale"]),
    (
        "resources",
        &[
            "cpu",
            "cpus",
            "limits",
            "memory",
            "memlimit",
            "pids",
            "pidslimit",
        ],
    ),
    (
        "run",
        &["commands", "provisioner", "script", "shell", "steps"],
    ),
    ("run_as", &["uid", "user"]),
    ("secret", &["secrets"]),
    ("soak", &["minreadyseconds"]),
    (
        "stop_grace",
        &[
            "gracetime",
            "stoptimeout",
            "terminationgraceperiod",
            "terminationgraceperiodseconds",
        ],
    ),
    (
        "strategy",
        &["deploy", "rollingupdate", "update", "updateconfig"],
    ),
    ("test", &["assert", "check", "expect", "goss"]),
    ("tmpfs", &["emptydir", "volume", "volumes"]),
    ("to", &["dest", "destination", "dst", "target"]),
    ("version", &["tag"]),
];

/// Attributes that stand in another place than one may look for them.
pub(crate) fn right_place(name: &str) -> Option<&'static str> {
    match name {
        "bases" => Some("write `bases` at the top of the definition, outside of all blocks"),
        "project" => Some("write `project` at the top of the definition, outside of all blocks"),
        _ => None,
    }
}

/// The candidate that other tools call `name`, or that is spelled otherwise (`stopGrace`, `stop-grace`).
pub(crate) fn ours<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let bare = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let foreign = bare(name);
    candidates.into_iter().find(|candidate| {
        let words = WORDS.iter().find(|(ours, _)| ours == candidate);
        bare(candidate) == foreign
            || words.is_some_and(|(_, others)| others.contains(&foreign.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let names = ["image", "replicas", "port", "listen", "env"];
        for (wrong, right) in [
            ("replica", Some("replicas")),
            ("imgae", Some("image")),
            ("prot", Some("port")),
            ("environment", Some("env")),
            ("volume", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wrong, names), right, "{wrong}");
        }
    }

    #[test]
    fn words_of_other_tools_are_known() {
        let names = ["replicas", "stop_grace", "probe", "resources"];
        for (foreign, right) in [
            ("scale", Some("replicas")),
            ("stop_timeout", Some("stop_grace")),
            ("stopGrace", Some("stop_grace")),
            ("readinessProbe", Some("probe")),
            ("health_check", Some("probe")),
            ("mem_limit", Some("resources")),
            ("tag", None),
        ] {
            assert_eq!(ours(foreign, names), right, "{foreign}");
        }
    }
}
