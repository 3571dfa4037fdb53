//! The warnings that need the values of variables: the stages gone through as a bake would, without carrying anything out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::instruction::{Action, Command, Copy, From, Instruction, Source};
use super::lint::is_secret;
use super::words;
use super::{Complaint, Dockerfile, Ignore, Text, Variables, expand, expand_heredoc, expand_words};
use crate::suggest;

/// What a warning may depend on beside the Dockerfile.
#[derive(Clone, Copy)]
pub struct LintInputs<'a> {
    pub build_args: &'a BTreeMap<String, String>,
    /// The number of the stage that is baked, with those that it needs; none: all of them.
    pub target: Option<usize>,
    /// As Go calls it.
    pub arch: &'a str,
    pub ignore: &'a Ignore,
    /// What an image says, as far as it can be had. None: variables without a value are told by the bake itself.
    pub base: Option<&'a BaseLookup<'a>>,
}

/// The values of the image of a name; none where they can't be had.
pub type BaseLookup<'a> = dyn Fn(&str) -> Option<BaseValues> + 'a;

/// What of an image's configuration matters.
#[derive(Clone, Debug, Default)]
pub struct BaseValues {
    /// `NAME=value`
    pub env: Vec<String>,
    /// It has a SHELL of its own.
    pub has_shell: bool,
}

/// What is known at one place of a stage.
#[derive(Clone, Default)]
struct Values {
    env: BTreeMap<String, String>,
    /// ARGs, also those without a value.
    declared: BTreeSet<String>,
    workdir_is_set: bool,
    has_shell: bool,
}

/// Variables that note who was asked for.
struct Asked<'a> {
    env: &'a BTreeMap<String, String>,
    had: RefCell<BTreeSet<String>>,
    lacked: RefCell<BTreeSet<String>>,
}

impl Variables for Asked<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let value = self.env.get(name).cloned();
        let noted = if value.is_some() {
            &self.had
        } else {
            &self.lacked
        };
        noted.borrow_mut().insert(name.to_owned());
        value
    }

    fn undefined(&mut self, _name: &str) {}
}

struct Expanded {
    /// Empty where it can't be told; the bake says why.
    value: String,
    had: BTreeSet<String>,
    lacked: BTreeSet<String>,
}

fn expand_and_note(text: &str, escape: char, env: &BTreeMap<String, String>) -> Expanded {
    let mut asked = Asked {
        env,
        had: RefCell::default(),
        lacked: RefCell::default(),
    };
    let value = expand(text, escape, &mut asked).unwrap_or_default();
    Expanded {
        value,
        had: asked.had.into_inner(),
        lacked: asked.lacked.into_inner(),
    }
}

impl Dockerfile {
    /// All warnings that are asked for, in their order in the file.
    pub fn lint(&self, inputs: &LintInputs<'_>) -> Vec<Complaint> {
        let mut lint = Lint {
            file: self,
            inputs,
            globals: self.globals(inputs),
            found: self.warnings.clone(),
        };
        lint.default_bases();
        for stage in &self.stages {
            lint.from(&stage.from);
        }
        let needed = inputs.target.map(|target| lint.needed(target));
        let mut ends: Vec<Values> = Vec::new();
        for index in 0..self.stages.len() {
            // Told even where nobody needs it, since others may stand on it; but then to nobody.
            let told = lint.found.len();
            let end = lint.stage(index, &ends);
            ends.push(end);
            if needed
                .as_ref()
                .is_some_and(|needed| !needed.contains(&index))
            {
                lint.found.truncate(told);
            }
        }
        let mut found = lint.found;
        found.retain(|warning| warning.rule.is_none_or(|rule| self.check.asks(rule)));
        found.sort_by_key(|warning| warning.span.start);
        found
    }

    /// What FROM knows: the automatic arguments, and the ARGs before the first FROM.
    fn globals(&self, inputs: &LintInputs<'_>) -> Values {
        let LintInputs {
            build_args, arch, ..
        } = *inputs;
        let mut globals = Values::default();
        for kind in ["TARGET", "BUILD"] {
            for (name, value) in [
                ("PLATFORM", format!("linux/{arch}")),
                ("OS", "linux".to_owned()),
                ("OSVERSION", String::new()),
                ("ARCH", arch.to_owned()),
                ("VARIANT", String::new()),
            ] {
                globals.env.insert(format!("{kind}{name}"), value);
            }
        }
        let stage = "default".to_owned();
        globals.env.insert("TARGETSTAGE".to_owned(), stage);
        for instruction in &self.args {
            let Action::Arg(args) = &instruction.action else {
                continue;
            };
            for (name, value) in args {
                globals.declared.insert(name.clone());
                let value = match (build_args.get(name), value) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(text)) => {
                        Some(expand_and_note(&text.text, self.escape, &globals.env).value)
                    }
                    (None, None) => None,
                };
                globals.env.extend(value.map(|value| (name.clone(), value)));
            }
        }
        globals
    }
}

struct Lint<'a> {
    file: &'a Dockerfile,
    inputs: &'a LintInputs<'a>,
    globals: Values,
    found: Vec<Complaint>,
}

impl Lint<'_> {
    fn warn(
        &mut self,
        rule: &'static str,
        span: std::ops::Range<usize>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.found.push(Complaint::warning(rule, span, what, help));
    }

    fn expanded(&self, text: &Text, env: &BTreeMap<String, String>) -> Expanded {
        expand_and_note(&text.text, self.file.escape, env)
    }

    /// With the defaults of the ARGs alone, each FROM names something that can be an image.
    fn default_bases(&mut self) {
        let none = BTreeMap::new();
        let inputs = LintInputs {
            build_args: &none,
            ..*self.inputs
        };
        let defaults = self.file.globals(&inputs);
        for stage in &self.file.stages {
            let image = &stage.from.image;
            if !is_reference(&self.expanded(image, &defaults.env).value) {
                let what = format!("without build arguments, `{}` is no image", image.text);
                let help = "give its ARG a default that makes it one";
                self.warn("InvalidDefaultArgInFrom", image.whole(), what, help);
            }
        }
    }

    fn from(&mut self, from: &From) {
        self.undeclared(&from.image);
        let Some(platform) = &from.platform else {
            return;
        };
        self.undeclared(platform);
        let Expanded { value, had, lacked } = self.expanded(platform, &self.globals.env);
        let target = self.globals.env.get("TARGETPLATFORM");
        let is_target = had.iter().eq(["TARGETPLATFORM"]);
        if is_target && lacked.is_empty() && target == Some(&value) {
            let what = format!("`{}` is the platform anyway", platform.text);
            let help = "take --platform out";
            self.warn("RedundantTargetPlatform", platform.whole(), what, help);
        }
        let name = from.name.as_ref().map(|name| name.text.to_lowercase());
        let named = |part: &str| name.as_ref().is_some_and(|name| name.contains(part));
        if let Some((os, arch)) = platform_parts(&value, self.inputs.arch)
            && had.is_empty()
            && lacked.is_empty()
            && !named(os)
            && !named(arch)
        {
            let what = format!("the platform is always `{value}`");
            let help = "take --platform out, or write the platform into the stage's name";
            self.warn(
                "FromPlatformFlagConstDisallowed",
                platform.whole(),
                what,
                help,
            );
        }
    }

    fn undeclared(&mut self, text: &Text) {
        let mut lacked = self.expanded(text, &self.globals.env).lacked;
        lacked.retain(|name| !self.globals.declared.contains(name));
        for name in lacked {
            let known = self.globals.declared.iter().chain(self.globals.env.keys());
            let help = match suggest::nearest(&name, known.map(String::as_str)) {
                Some(near) => format!("did you mean ${near}?"),
                None => format!("write ARG {name}=… before the first FROM"),
            };
            let what = format!("the variable `{name}` is no ARG before the first FROM");
            self.warn("UndefinedArgInFrom", place(text, &name), what, help);
        }
    }

    /// The stages that `target` takes from, and itself.
    fn needed(&self, target: usize) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            let Some(stage) = self.file.stages.get(index) else {
                continue;
            };
            if !all.insert(index) {
                continue;
            }
            open.extend(self.base_stage(index));
            for instruction in &stage.instructions {
                let names: Vec<&str> = match &instruction.action {
                    Action::Copy(copy) => copy.from.iter().map(|from| from.text.as_str()).collect(),
                    Action::Run(run) => run
                        .flags
                        .iter()
                        .filter_map(|flag| flag.value.as_ref())
                        .flat_map(|value| value.text.split(','))
                        .filter_map(|field| field.trim().strip_prefix("from="))
                        .collect(),
                    _ => Vec::new(),
                };
                open.extend(names.iter().filter_map(|name| self.file.stage(name, index)));
            }
        }
        all
    }

    fn base_stage(&self, index: usize) -> Option<usize> {
        let image = &self.file.stages[index].from.image;
        let name = self.expanded(image, &self.globals.env).value;
        self.file.stage_called(&name, index)
    }

    fn stage(&mut self, index: usize, before: &[Values]) -> Values {
        let file = self.file;
        let stage = &file.stages[index];
        let mut values = match self.base_stage(index) {
            Some(other) => before[other].clone(),
            None => self.image(&stage.from),
        };
        let mut last: [Option<&Instruction>; 3] = [None; 3];
        for instruction in &stage.instructions {
            self.instruction(instruction, &mut values);
            let (slot, name) = match &instruction.action {
                Action::Cmd(_) => (0, "CMD"),
                Action::Entrypoint(_) => (1, "ENTRYPOINT"),
                Action::Healthcheck(_) => (2, "HEALTHCHECK"),
                _ => continue,
            };
            if let Some(earlier) = last[slot].replace(instruction) {
                self.warn(
                    "MultipleInstructionsDisallowed",
                    earlier.span.clone(),
                    format!("a later {name} of the stage replaces this one"),
                    "keep the last one",
                );
            }
        }
        values
    }

    fn image(&self, from: &From) -> Values {
        let name = self.expanded(&from.image, &self.globals.env).value;
        let known = match self.inputs.base {
            Some(base) if name != "scratch" => base(&name),
            _ => None,
        };
        let BaseValues { env, has_shell } = known.unwrap_or_default();
        let mut env: BTreeMap<String, String> = env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        env.entry("PATH".to_owned()).or_default();
        Values {
            env,
            has_shell,
            ..Values::default()
        }
    }

    /// The text's value; a variable without one is warned of.
    fn value(&mut self, text: &Text, values: &Values) -> String {
        let Expanded { value, lacked, .. } = self.expanded(text, &values.env);
        self.undefined(text, lacked, values);
        value
    }

    fn undefined(&mut self, text: &Text, lacked: BTreeSet<String>, values: &Values) {
        if self.inputs.base.is_none() {
            return;
        }
        for name in lacked {
            if values.declared.contains(&name) {
                continue;
            }
            let help = match suggest::nearest(&name, values.env.keys().map(String::as_str)) {
                Some(near) => format!("did you mean ${near}?"),
                None => "give it a value with ARG or ENV before".to_owned(),
            };
            let what = format!("the variable `{name}` has no value here");
            self.warn("UndefinedVar", place(text, &name), what, help);
        }
    }

    fn instruction(&mut self, instruction: &Instruction, values: &mut Values) {
        match &instruction.action {
            Action::Arg(args) => {
                for (name, value) in args {
                    self.secret(instruction, name);
                    let given = self.inputs.build_args.get(name);
                    let value = match (given, value) {
                        (Some(given), _) => Some(given.clone()),
                        (None, Some(text)) => Some(self.value(text, values)),
                        (None, None) => self.globals.env.get(name).cloned(),
                    };
                    values.declared.insert(name.clone());
                    values.env.extend(value.map(|value| (name.clone(), value)));
                }
            }
            Action::Env(pairs) => {
                self.old_pairs(instruction);
                let new: Vec<(String, String)> = pairs
                    .iter()
                    .map(|(name, value)| (self.value(name, values), self.value(value, values)))
                    .collect();
                for (name, value) in new {
                    self.secret(instruction, &name);
                    values.env.insert(name, value);
                }
            }
            Action::Label(pairs) => {
                self.old_pairs(instruction);
                for (name, value) in pairs {
                    self.value(name, values);
                    self.value(value, values);
                }
            }
            Action::Run(run) => {
                let mounts = run.flags.iter().filter(|flag| flag.name == "mount");
                for text in mounts.filter_map(|flag| flag.value.as_ref()) {
                    self.value(text, values);
                }
            }
            Action::Cmd(command) => self.shell_form(instruction, command, values),
            Action::Entrypoint(command) => self.shell_form(instruction, command, values),
            Action::Shell(_) => values.has_shell = true,
            Action::Copy(copy) => self.copy(copy, "COPY", values),
            Action::Add(copy) => self.copy(copy, "ADD", values),
            Action::Workdir(path) => {
                let path_text = path;
                let path = self.value(path, values);
                if !values.workdir_is_set && !path.starts_with('/') {
                    self.warn(
                        "WorkdirRelativePath",
                        path_text.whole(),
                        format!("where `{path}` is depends on the base's own folder"),
                        "begin with an absolute one",
                    );
                }
                values.workdir_is_set = true;
            }
            Action::User(text) | Action::StopSignal(text) => drop(self.value(text, values)),
            Action::Volume(volumes) => {
                for volume in volumes {
                    self.value(volume, values);
                }
            }
            Action::Expose(ports) => self.expose(ports, values),
            Action::Healthcheck(_) | Action::Onbuild(_) | Action::Maintainer(_) => {}
        }
    }

    fn secret(&mut self, instruction: &Instruction, name: &str) {
        if is_secret(name) {
            self.warn(
                "SecretsUsedInArgOrEnv",
                instruction.span.clone(),
                format!("`{name}` looks like a secret, and would stay in the image"),
                "give it to the RUN that needs it: RUN --mount=type=secret,id=…",
            );
        }
    }

    fn old_pairs(&mut self, instruction: &Instruction) {
        let words = words::raw_words(&instruction.text, self.file.escape);
        if words.get(1).is_some_and(|word| !word.contains('=')) {
            self.warn(
                "LegacyKeyValueFormat",
                instruction.span.clone(),
                "name and value are separated by white space",
                "write NAME=VALUE",
            );
        }
    }

    fn shell_form(&mut self, instruction: &Instruction, command: &Command, values: &Values) {
        if matches!(command, Command::Shell(_)) && !values.has_shell {
            self.warn(
                "JSONArgsRecommended",
                instruction.span.clone(),
                "the shell form: signals reach the shell, not the program",
                "write it as JSON: [\"program\", \"argument\"]",
            );
        }
    }

    fn copy(&mut self, copy: &Copy, keyword: &str, values: &Values) {
        let options = [&copy.chown, &copy.chmod, &copy.checksum];
        for text in options.into_iter().flatten() {
            self.value(text, values);
        }
        for source in &copy.sources {
            match source {
                Source::Path(text) => {
                    let path = self.value(text, values);
                    let is_address = path.contains("://");
                    if copy.from.is_none() && !is_address && self.inputs.ignore.names(&path) {
                        self.warn(
                            "CopyIgnoredFile",
                            text.whole(),
                            format!("{keyword} of `{path}`, which `.dockerignore` leaves out"),
                            "take it back there with `!`, or copy something else",
                        );
                    }
                }
                Source::Heredoc(heredoc) if heredoc.expand => {
                    let mut asked = Asked {
                        env: &values.env,
                        had: RefCell::default(),
                        lacked: RefCell::default(),
                    };
                    // What is wrong with it is the bake's to tell.
                    let _ = expand_heredoc(&heredoc.content.text, '\\', &mut asked);
                    self.undefined(&heredoc.content, asked.lacked.into_inner(), values);
                }
                Source::Heredoc(_) => {}
            }
        }
        self.value(&copy.to, values);
    }

    fn expose(&mut self, ports: &[Text], values: &Values) {
        for text in ports {
            let mut asked = Asked {
                env: &values.env,
                had: RefCell::default(),
                lacked: RefCell::default(),
            };
            let words = expand_words(&text.text, self.file.escape, &mut asked);
            for port in words.unwrap_or_default() {
                let (host, last) = port.rsplit_once(':').unwrap_or(("", &port));
                let protocol = last.split_once('/').map_or("", |(_, protocol)| protocol);
                if protocol != protocol.to_lowercase() {
                    let what = format!("the protocol of `{port}` is not in lower case");
                    let help = format!("write {}", protocol.to_lowercase());
                    self.warn("ExposeProtoCasing", text.whole(), what, help);
                }
                if !host.is_empty() {
                    let what = format!("`{port}` has an address or a port of the host");
                    let help = format!("write {last}: what it is outside is said where it runs");
                    self.warn("ExposeInvalidFormat", text.whole(), what, help);
                }
            }
        }
    }
}

/// Where `text` has the variable.
fn place(text: &Text, name: &str) -> std::ops::Range<usize> {
    match text.text.find(name) {
        Some(at) => text.span(at..at + name.len()),
        None => text.whole(),
    }
}

/// The system and the processor; none where it is no platform.
fn platform_parts<'a>(text: &'a str, here: &'a str) -> Option<(&'a str, &'a str)> {
    let parts: Vec<&str> = text.split('/').collect();
    let good = |part: &&str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        !part.is_empty() && part.chars().all(allowed)
    };
    if !parts.iter().all(good) {
        return None;
    }
    let (os, arch) = match parts[..] {
        [os @ ("linux" | "windows" | "darwin" | "freebsd")] => (os, here),
        [arch] => ("linux", arch),
        [os, arch] | [os, arch, _] => (os, arch),
        _ => return None,
    };
    let arch = match arch {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Some((os, arch))
}

/// Whether an image may have this name, as the distribution's grammar has it.
fn is_reference(text: &str) -> bool {
    let (name, digest) = text.split_once('@').unwrap_or((text, "sha256:"));
    let digest_is_good = digest
        .split_once(':')
        .is_some_and(|(kind, hex)| !kind.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let last = name.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match name[last..].find(':') {
        Some(at) => (&name[..last + at], Some(&name[last + at + 1..])),
        None => (name, None),
    };
    let tag_is_good = tag.is_none_or(|tag| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let starts = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        starts && tag.len() <= 128 && tag.chars().all(allowed)
    });
    let path = match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            path
        }
        _ => name,
    };
    let part_is_good = |part: &str| {
        let ends =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        ends(part.chars().next())
            && ends(part.chars().last())
            && part.chars().all(allowed)
            && !part.contains("..")
            && !part.contains("___")
    };
    // A name that is all of a digest can't be told from one.
    let is_id = path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit());
    digest_is_good && tag_is_good && !is_id && path.split('/').all(part_is_good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_told_from_others() {
        for good in [
            "busybox",
            "a/b/c:1.2",
            "localhost:5000/a",
            "ghcr.io/a-b/c__d@sha256:00ff",
            "EXAMPLE/a",
            "scratch",
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "", ":1", "a:", "A", "a//b", "a:-x", "-a", "a-", "a b", "a@b",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn platforms_have_one_to_three_parts() {
        assert_eq!(platform_parts("x86_64", "arm64"), Some(("linux", "amd64")));
        assert_eq!(platform_parts("linux", "arm64"), Some(("linux", "arm64")));
        assert_eq!(
            platform_parts("windows/amd64/v2", "arm64"),
            Some(("windows", "amd64"))
        );
        for bad in ["", "linux/", "a/b/c/d", "linux/$X"] {
            assert_eq!(platform_parts(bad, "amd64"), None, "{bad}");
        }
    }
}
