//! `kiln logs`: what the instances of a service printed.

use std::time::Duration;

use kiln_model::api::LogLine;

use crate::client::{Client, Next};
use crate::failure::{Exit, Failure};
use crate::{args, output, settings};

pub(crate) fn run(args: args::Logs) -> Result<Exit, Failure> {
    let args::Logs {
        service,
        follow,
        lines,
        instance,
        environment,
        root,
        json,
    } = args;
    let client = Client::new(&settings::root(root)?);
    let mut path = format!(
        "/v1/logs?environment={}&service={service}&lines={lines}&follow={follow}",
        environment.env
    );
    if let Some(instance) = instance {
        path.push_str(&format!("&instance={instance}"));
    }
    let mut answer = client.get_lines(&path)?;
    loop {
        match answer.next::<LogLine>(Duration::from_secs(1))? {
            Next::Silence => {}
            Next::End => return Ok(Exit::Done),
            Next::Line(line) if json.json => output::json(&line)?,
            Next::Line(line) => output::line(&text(&line))?,
        }
    }
}

pub(crate) fn text(line: &LogLine) -> String {
    let LogLine {
        instance,
        at,
        stream,
        line,
        left_out: _,
    } = line;
    let separator = match stream.as_str() {
        "stderr" => "!",
        "kiln" => "…",
        _ => "|",
    };
    format!("{} {instance} {separator} {line}", at.rfc3339())
}
