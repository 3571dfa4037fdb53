//! The section that a benchmark leaves in `docs/benchmarks.md`: measured by whoever ran it, on what, by which
//! command.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_model::Timestamp;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("{path}: cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: cannot be written")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: `{begin}` is not followed by `{end}`: mend the markers by hand")]
    Markers {
        path: PathBuf,
        begin: String,
        end: String,
    },
}

/// A table and the sentences around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    /// As typed, without `cargo xtask`.
    pub(crate) command: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Each a paragraph below the table.
    pub(crate) notes: Vec<String>,
}

impl Section {
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn markdown(&self, name: &str, when: &str, machine: &str) -> String {
        let mut text = format!(
            "## {name}\n\n`cargo xtask {}`, {when}, {machine}\n\n",
            self.command
        );
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text.push_str(&line(&self.head));
        text.push_str(&line(&vec!["---".to_owned(); self.head.len()]));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// Prints the section and puts it in the place of the last one of that name.
    pub(crate) fn publish(&self, name: &str, documents: &Path) -> Result<(), ReportError> {
        let text = self.markdown(name, &today(), &machine());
        println!("\n{text}");
        let path = documents.join("benchmarks.md");
        let page = match std::fs::read_to_string(&path) {
            Ok(page) => page,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "# Benchmarks\n\nEach section is written by the command that it names.\n".to_owned()
            }
            Err(source) => return Err(ReportError::Read { path, source }),
        };
        let page = replaced(&page, name, &text).map_err(|(begin, end)| ReportError::Markers {
            path: path.clone(),
            begin,
            end,
        })?;
        std::fs::write(&path, page).map_err(|source| ReportError::Write { path, source })
    }
}

/// The page with the section between its markers replaced, or added at its end. Fails with the markers.
fn replaced(page: &str, name: &str, text: &str) -> Result<String, (String, String)> {
    let begin = format!("<!-- bench:{name} -->");
    let end = format!("<!-- /bench:{name} -->");
    let section = format!("{begin}\n{}\n{end}", text.trim_end());
    match (page.find(&begin), page.find(&end)) {
        (None, None) => Ok(format!("{}\n\n{section}\n", page.trim_end())),
        (Some(from), Some(to)) if from < to => Ok(format!(
            "{}{section}{}",
            &page[..from],
            &page[to + end.len()..]
        )),
        _ => Err((begin, end)),
    }
}

fn today() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    now.rfc3339()[..10].to_owned()
}

/// Cores, processor and kernel: what a reader needs to compare.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores ({processor}), Linux {}", kernel.trim())
}

/// With three significant digits or so, in the unit that suits.
pub(crate) fn shown(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    if us < 1000.0 {
        format!("{us:.0} µs")
    } else if us < 100_000.0 {
        format!("{:.1} ms", us / 1e3)
    } else if us < 1e6 {
        format!("{:.0} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}

/// Of so many in a thousand of what was measured; zero of nothing.
pub(crate) fn quantile(samples: &[Duration], per_mille: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_replaces_its_predecessor_and_nothing_else() {
        let page = "# B\n\nwords\n";
        let one = replaced(page, "switch", "first").unwrap();
        let two = replaced(&one, "bake", "other").unwrap();
        let three = replaced(&two, "switch", "second").unwrap();
        assert_eq!(
            three,
            "# B\n\nwords\n\n<!-- bench:switch -->\nsecond\n<!-- /bench:switch -->\n\n<!-- bench:bake -->\nother\n<!-- /bench:bake -->\n"
        );
    }

    #[test]
    fn a_page_with_half_a_pair_of_markers_is_left_alone() {
        assert!(replaced("<!-- bench:switch -->\n", "switch", "x").is_err());
        assert!(replaced("<!-- /bench:a --> <!-- bench:a -->", "a", "x").is_err());
    }

    #[test]
    fn a_table_is_markdown() {
        let mut section = Section {
            command: "bench x".to_owned(),
            head: vec!["a".to_owned(), "b".to_owned()],
            notes: vec!["why".to_owned()],
            ..Section::default()
        };
        section.row(["1".to_owned(), "2".to_owned()]);
        assert_eq!(
            section.markdown("x", "today", "here"),
            "## x\n\n`cargo xtask bench x`, today, here\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nwhy\n"
        );
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_suits() {
        let shown: Vec<String> = [840, 1_250, 250_000, 2_500_000]
            .map(|us| shown(Duration::from_micros(us)))
            .into();
        assert_eq!(shown, ["840 µs", "1.2 ms", "250 ms", "2.50 s"]);
    }

    #[test]
    fn a_quantile_is_a_sample() {
        let samples: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&samples, 500), Duration::from_millis(100));
        assert_eq!(quantile(&samples, 990), Duration::from_millis(198));
        assert_eq!(quantile(&[], 990), Duration::ZERO);
    }
}
