use std::collections::BTreeSet;

use kiln_oci::ImageConfig;

use super::commands::{in_command, in_text};
use super::finding::{Finding, PASSWORD};
use super::names::is_secret_name;
use super::texts::is_said;

/// Searches what is not in files: the configuration, and the commands of the steps.
pub(crate) fn in_config(config: &ImageConfig, commands: &[String]) -> Vec<Finding> {
    let mut found = BTreeSet::new();
    let run = &config.config;
    for pair in &run.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = format!("env.{name}");
        if is_secret_name(name) && is_said(value) {
            found.insert(Finding::new(PASSWORD, &*place));
        }
        in_text(value, &place, &mut found);
    }
    for (name, value) in &run.labels {
        in_text(value, &format!("label.{name}"), &mut found);
    }
    for (place, words) in [("entrypoint", &run.entrypoint), ("cmd", &run.cmd)] {
        in_command(&words.join(" "), place, &mut found);
    }
    for (number, command) in commands.iter().enumerate() {
        in_command(command, &format!("run.{}", number + 1), &mut found);
    }
    for (number, one) in config.history.iter().enumerate() {
        let place = format!("history.{}", number + 1);
        for text in one.created_by.iter().chain(&one.comment) {
            in_command(text, &place, &mut found);
        }
    }
    found.into_iter().collect()
}
