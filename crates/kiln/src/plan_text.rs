//! A plan for a person: what would change, and why.

use kiln_model::{Change, ChangeKind, FieldChange, Plan, Reason};

pub(crate) fn text(plan: &Plan) -> String {
    let environment = &plan.spec.environment;
    if plan.changes.is_empty() {
        return format!("{environment}: nothing would change");
    }
    let count = plan.changes.len();
    let plural = if count == 1 {
        "service changes"
    } else {
        "services change"
    };
    format!(
        "{}\n{environment}: {count} {plural}; `kiln apply` does it",
        changes(plan)
    )
}

/// The changes alone, as they are begun.
pub(crate) fn changes(plan: &Plan) -> String {
    let mut lines = Vec::new();
    for change in &plan.changes {
        change_lines(&mut lines, change);
    }
    lines.join("\n")
}

fn change_lines(lines: &mut Vec<String>, change: &Change) {
    let Change {
        service,
        kind,
        reasons,
        peak_instances,
    } = change;
    lines.push(match kind {
        ChangeKind::Create { to } => format!("+ {service}@{to}  new"),
        ChangeKind::Replace { from, to } => {
            format!("~ {service}@{from} → {service}@{to}  replaced")
        }
        ChangeKind::Policy => format!("~ {service}  policy alone, no instance is replaced for it"),
        ChangeKind::Remove { from } => format!("- {service}@{from}  removed"),
    });
    for reason in reasons {
        let text = match reason {
            // Said by the line above already.
            Reason::New => continue,
            Reason::NotDefined => "it is not in the definition any more".to_owned(),
            Reason::Release { change } | Reason::Policy { change } => field(change),
            Reason::Retry => {
                "the last rollout to this release failed; it is tried again".to_owned()
            }
        };
        lines.push(format!("    {text}"));
    }
    let plural = if *peak_instances == 1 { "" } else { "s" };
    lines.push(format!(
        "    at most {peak_instances} instance{plural} at once while it is done"
    ));
}

fn field(change: &FieldChange) -> String {
    let FieldChange { field, from, to } = change;
    match (from, to) {
        (None, None) => field.clone(),
        (None, Some(to)) => format!("{field}: + {to}"),
        (Some(from), None) => format!("{field}: - {from}"),
        (Some(from), Some(to)) => format!("{field}: {from} → {to}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_model::{EnvironmentSpec, ReleaseNumber, StateId};

    use super::*;

    #[test]
    fn every_kind_of_change_has_its_line_and_its_reasons() {
        let change = |kind, reasons| Change {
            service: "api".parse().unwrap(),
            kind,
            reasons,
            peak_instances: 2,
        };
        let from_to = |field: &str, from: Option<&str>, to: Option<&str>| FieldChange {
            field: field.to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let (one, two) = (ReleaseNumber(1), ReleaseNumber(2));
        let mut plan = Plan {
            parent: StateId(0),
            spec: EnvironmentSpec {
                project: "shop".parse().unwrap(),
                environment: "dev".parse().unwrap(),
                services: BTreeMap::new(),
            },
            changes: vec![],
        };
        assert_eq!(text(&plan), "dev: nothing would change");
        plan.changes = vec![
            change(ChangeKind::Create { to: one }, vec![Reason::New]),
            change(
                ChangeKind::Replace { from: one, to: two },
                vec![
                    Reason::Release {
                        change: from_to("image", Some("\"a\""), Some("\"b\"")),
                    },
                    Reason::Release {
                        change: from_to("env.A", None, Some("\"1\"")),
                    },
                    Reason::Retry,
                ],
            ),
            change(
                ChangeKind::Policy,
                vec![Reason::Policy {
                    change: from_to("live", Some("{}"), None),
                }],
            ),
            change(ChangeKind::Remove { from: two }, vec![Reason::NotDefined]),
        ];
        assert_eq!(
            text(&plan),
            "+ api@1  new\n    at most 2 instances at once while it is done\n\
             ~ api@1 → api@2  replaced\n    image: \"a\" → \"b\"\n    env.A: + \"1\"\n    the last rollout to this release failed; it is tried again\n    at most 2 instances at once while it is done\n\
             ~ api  policy alone, no instance is replaced for it\n    live: - {}\n    at most 2 instances at once while it is done\n\
             - api@2  removed\n    it is not in the definition any more\n    at most 2 instances at once while it is done\n\
             dev: 4 services change; `kiln apply` does it"
        );
    }
}
