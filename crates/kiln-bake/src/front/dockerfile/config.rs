//! The instructions that change only what is said about the image.

use kiln_config::dockerfile::{Command, Complaint, Dockerfile, Healthcheck, Text};
use kiln_model::signal_number;

use super::bake::Bake;
use super::stage_builder::StageBuilder;
use crate::error::BakeError;

impl StageBuilder {
    pub(super) fn arg(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        args: &[(String, Option<Text>)],
    ) -> Result<(), BakeError> {
        for (name, value) in args {
            bake.notes().used_args.insert(name.clone());
            self.stage.declared.insert(name.clone());
            let value = match (bake.request.build_args.get(name), value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(value)) => Some(self.expand(bake, file, value)?),
                (None, None) => bake.globals.get(name).cloned(),
            };
            // One without a value changes nothing.
            if let Some(value) = value {
                self.stage.args.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    pub(super) fn env(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        pairs: &[(Text, Text)],
    ) -> Result<(), BakeError> {
        for (name, value) in self.pairs(bake, file, pairs)? {
            let pair = format!("{name}={value}");
            self.stage.args.remove(&name);
            let env = &mut self.stage.config.config.env;
            let known = env.iter_mut().find(|known| {
                known
                    .split_once('=')
                    .is_some_and(|(known, _)| known == name)
            });
            match known {
                Some(known) => *known = pair,
                None => env.push(pair),
            }
        }
        Ok(())
    }

    pub(super) fn user(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        user: &Text,
    ) -> Result<(), BakeError> {
        let name = self.expand(bake, file, user)?;
        if name.is_empty() {
            let what = "USER is empty once its variables are replaced, and means root";
            self.empty(bake, file, user, what);
        }
        self.stage.config.config.user = name;
        Ok(())
    }

    /// As BuildKit has it, no error.
    pub(super) fn empty(&self, bake: &Bake<'_>, file: &Dockerfile, text: &Text, what: &str) {
        // One of an ONBUILD has no place in this file.
        if std::ptr::eq(file, bake.request.dockerfile) {
            let help = "give the variable a default, or a value with --build-arg";
            let warning = Complaint::warning("EmptyValue", text.whole(), what, help);
            bake.warn(self.index, vec![warning]);
        }
    }

    pub(super) fn expose(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        ports: &[Text],
    ) -> Result<(), BakeError> {
        let wrong = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        for port in self.words(bake, file, ports)? {
            let exposed = exposed(&port).ok_or_else(|| {
                wrong(
                    &ports[0],
                    format!("`{port}` is not a port"),
                    "write it as 80, 80/udp or 8000-8010/tcp",
                )
            })?;
            for port in exposed {
                let ports = &mut self.stage.config.config.exposed_ports;
                ports.insert(port, kiln_oci::image::Empty {});
            }
        }
        Ok(())
    }

    pub(super) fn volume(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        volumes: &[Text],
    ) -> Result<(), BakeError> {
        let wrong = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        for volume in volumes {
            let path = self.expand(bake, file, volume)?;
            if path.is_empty() {
                return Err(wrong(
                    volume,
                    "VOLUME is empty once its variables are replaced".to_owned(),
                    "",
                ));
            }
            let volumes = &mut self.stage.config.config.volumes;
            volumes.insert(path, kiln_oci::image::Empty {});
        }
        Ok(())
    }

    pub(super) fn stop_signal(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        signal: &Text,
    ) -> Result<(), BakeError> {
        let wrong = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        let name = self.expand(bake, file, signal)?;
        // As docker has it, any number; an instance with one that is no signal is refused.
        let is_number = name.parse::<i64>().is_ok_and(|number| number != 0);
        if !is_number && signal_number(&name).is_none() {
            return Err(wrong(
                signal,
                format!("`{name}` is not a signal"),
                "write SIGTERM or 15",
            ));
        }
        self.stage.config.config.stop_signal = Some(name);
        Ok(())
    }

    pub(super) fn healthcheck(&self, check: &Healthcheck) -> kiln_oci::image::Healthcheck {
        match check {
            Healthcheck::None => kiln_oci::image::Healthcheck {
                test: vec!["NONE".to_owned()],
                ..Default::default()
            },
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => {
                let mut test = match command {
                    Command::Exec(_) => vec!["CMD".to_owned()],
                    Command::Shell(_) => vec!["CMD-SHELL".to_owned()],
                };
                match command {
                    Command::Exec(words) => test.extend(words.clone()),
                    Command::Shell(line) => test.push(line.clone()),
                }
                kiln_oci::image::Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    start_interval: *start_interval,
                    retries: *retries,
                }
            }
        }
    }
}

/// `80`, `80/udp`, `8000-8002/tcp`, and of `host:container` the container's.
fn exposed(text: &str) -> Option<Vec<String>> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.to_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return None;
    }
    let ports = ports.rsplit(':').next()?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then(|| {
        (first..=last)
            .map(|port| format!("{port}/{protocol}"))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("127.0.0.1:8080:53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(exposed("8000-8001").unwrap(), ["8000/tcp", "8001/tcp"]);
        for wrong in ["x", "80/x", "9-8", "70000", ""] {
            assert_eq!(exposed(wrong), None, "{wrong}");
        }
    }
}
