//! `probe "ready" { … }` and `probe "live" { … }`.

use std::time::Duration;

use kiln_model::HttpProbe;

use crate::Problem;
use crate::reader::Reader;
use crate::section::{Labelled, Section, Shape};
use crate::value::At;

const PERIOD: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);
const SUCCESSES: u32 = 2;
const FAILURES: u32 = 3;

/// As written: what is not there comes from the service below an environment's, or from the defaults.
#[derive(Clone, Default)]
pub(crate) struct ProbeDraft {
    header: Option<std::ops::Range<usize>>,
    http: Option<At<String>>,
    /// `http` is written, if perhaps wrongly.
    has_http: bool,
    period: Option<Duration>,
    timeout: Option<Duration>,
    successes: Option<u32>,
    failures: Option<u32>,
}

const SHAPE: Shape = Shape {
    attributes: &["http", "period", "timeout", "successes", "failures"],
    blocks: &[],
    later: &[
        (
            "tcp",
            "leave the probe out: a port that accepts a connection is ready",
        ),
        ("exec", "use `http`"),
    ],
};

impl ProbeDraft {
    pub(crate) fn read(reader: &mut Reader<'_>, labelled: &Labelled<'_>) -> Self {
        let place = format!("`probe \"{}\"`", labelled.label.value);
        let section = Section::read(
            reader,
            &SHAPE,
            &labelled.block.body,
            place,
            labelled.header.clone(),
        );
        let http = section.request_path(reader, "http");
        let least = Duration::from_millis(10);
        Self {
            header: Some(section.header.clone()),
            http,
            has_http: section.has("http"),
            period: section.duration(reader, "period", least).map(|at| at.value),
            timeout: section
                .duration(reader, "timeout", least)
                .map(|at| at.value),
            successes: section
                .whole(reader, "successes", 1, 1000)
                .map(|at| at.value),
            failures: section
                .whole(reader, "failures", 1, 1000)
                .map(|at| at.value),
        }
    }

    pub(crate) fn overlay(self, over: Self) -> Self {
        let Self {
            header,
            http,
            has_http,
            period,
            timeout,
            successes,
            failures,
        } = over;
        Self {
            header: self.header.or(header),
            http: http.or(self.http),
            has_http: has_http || self.has_http,
            period: period.or(self.period),
            timeout: timeout.or(self.timeout),
            successes: successes.or(self.successes),
            failures: failures.or(self.failures),
        }
    }

    pub(crate) fn header(&self) -> Option<std::ops::Range<usize>> {
        self.header.clone()
    }

    pub(crate) fn resolve(self, reader: &mut Reader<'_>, kind: &str) -> Option<HttpProbe> {
        if !self.has_http
            && let Some(header) = self.header
        {
            reader.report(
                Problem::Missing {
                    place: format!("`probe \"{kind}\"`"),
                    name: "http".to_owned(),
                },
                header,
                "expected `http` in it",
                format!("add `http = \"/{kind}\"`"),
            );
            return None;
        }
        Some(HttpProbe {
            path: self.http?.value,
            period: self.period.unwrap_or(PERIOD),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            successes: self.successes.unwrap_or(SUCCESSES),
            failures: self.failures.unwrap_or(FAILURES),
        })
    }
}
