//! What a bake is doing, as it does it: on a terminal a line for each step that is carried out, drawn again as time goes by; whole
//! lines elsewhere.
//!
//! Drawn here rather than by indicatif: that would take over the rows of a terminal alone. What is told, in whole lines or not at all,
//! and what a step said last, is most of this file and would stay.

use std::io::{IsTerminal, Stderr, Write};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_bake::{BakeProgress, StepReport};

use crate::failure::Failure;
use crate::output::Audience;
use crate::table;

/// How often the times of what is drawn are.
const TICK: Duration = Duration::from_millis(500);
/// More than these are counted, and not drawn.
const ROWS_MAX: usize = 10;

/// How a bake is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Progress {
    /// As the place where it is told allows.
    #[default]
    Auto,
    /// Whole lines, with what the steps say.
    Plain,
    /// Nothing but warnings and errors.
    Quiet,
}

impl FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "quiet" => Ok(Self::Quiet),
            _ => Err("it is auto, plain or quiet".to_owned()),
        }
    }
}

/// Whom a bake is told, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reporting {
    pub(crate) audience: Audience,
    pub(crate) progress: Progress,
}

impl From<Audience> for Reporting {
    fn from(audience: Audience) -> Self {
        Self {
            audience,
            progress: Progress::Auto,
        }
    }
}

impl Reporting {
    /// A line that stays.
    pub(crate) fn line(self, text: &str) -> Result<(), Failure> {
        match self.progress {
            Progress::Quiet => Ok(()),
            Progress::Auto | Progress::Plain => self.audience.progress(text),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Terminal { columns: usize, rows: usize },
    Lines { with_output: bool },
    Nothing,
}

impl Form {
    fn of(progress: Progress, out: &Stderr) -> Self {
        match progress {
            Progress::Quiet => return Self::Nothing,
            Progress::Plain => return Self::Lines { with_output: true },
            Progress::Auto if !out.is_terminal() => return Self::Lines { with_output: false },
            Progress::Auto => {}
        }
        // A terminal that does not know its size says 0.
        let size = rustix::termios::tcgetwinsize(out).ok();
        let or = |size: Option<u16>, other| match size {
            None | Some(0) => other,
            Some(size) => usize::from(size),
        };
        Self::Terminal {
            columns: or(size.map(|size| size.ws_col), 80),
            rows: or(size.map(|size| size.ws_row), 24),
        }
    }
}

/// A step that is carried out.
struct Running {
    name: String,
    since: Instant,
    said: String,
}

struct Screen<W: Write> {
    image: String,
    out: W,
    form: Form,
    running: Vec<Running>,
    /// What is done that is no step.
    doing: String,
    /// Tenths of the packages that were told.
    tenths: usize,
    /// Rows that are on the terminal.
    drawn: usize,
    /// The terminal is somebody else's.
    is_lent: bool,
}

impl<W: Write> Screen<W> {
    fn new(image: &str, out: W, form: Form) -> Self {
        Self {
            image: image.to_owned(),
            out,
            form,
            running: Vec::new(),
            doing: String::new(),
            tenths: 0,
            drawn: 0,
            is_lent: false,
        }
    }

    /// Takes it in, and gives the line that stays once a step has ended. [`Screen::draw`] shows the rest.
    fn tell(&mut self, now: Instant, progress: BakeProgress) -> Option<String> {
        match progress {
            BakeProgress::Resolving { suite } => {
                self.doing(format!("asking the archive what {suite} has"));
            }
            BakeProgress::Importing { image } => {
                self.doing(format!("looking for the base {image}"));
            }
            BakeProgress::Downloading { url } => self.doing(format!("fetching {url}")),
            BakeProgress::Fetching { done, of } => {
                let tenths = done * 10 / of.max(1);
                // A log wants no line for each package.
                if matches!(self.form, Form::Terminal { .. }) || tenths > self.tenths {
                    self.tenths = tenths;
                    self.doing(format!("{done} of {of} packages fetched"));
                }
            }
            BakeProgress::Step { name, cached } => {
                self.is_lent = false;
                self.tenths = 0;
                self.doing.clear();
                if !cached {
                    self.log(&format!("{name} begins"));
                    self.running.push(Running {
                        name,
                        since: now,
                        said: String::new(),
                    });
                }
            }
            BakeProgress::Shell { why } => {
                self.is_lent = true;
                return Some(format!(
                    "{why}\n{}: a shell where it failed (`exit` ends it, and the bake fails)",
                    self.image
                ));
            }
            BakeProgress::Said { step, line } => {
                // Without being asked, a log shows it where the step fails.
                if self.form == (Form::Lines { with_output: true }) {
                    self.log(&format!("{step}: {line}"));
                }
                if let Some(running) = self.running.iter_mut().find(|one| one.name == step) {
                    running.said = line;
                }
            }
            BakeProgress::Ended(StepReport {
                name,
                cached,
                duration_ms,
                ..
            }) => {
                self.doing.clear();
                if let Some(at) = self.running.iter().position(|one| one.name == name) {
                    self.running.remove(at);
                }
                let took = table::duration(Duration::from_millis(duration_ms));
                return (!cached).then(|| format!("{}: {name} took {took}", self.image));
            }
        }
        None
    }

    fn doing(&mut self, what: String) {
        self.log(&what);
        self.doing = what;
    }

    /// A line, where there is no terminal.
    fn log(&mut self, text: &str) {
        if let Form::Lines { .. } = self.form {
            let text = format!("{}: {text}", self.image);
            // Standard error that nobody reads is no reason to fail.
            let _ = writeln!(self.out, "{}", plain(&text)).and_then(|()| self.out.flush());
        }
    }

    /// Draws what is carried out, in place of what was drawn before.
    fn draw(&mut self, now: Instant) {
        let Form::Terminal { columns, rows } = self.form else {
            return;
        };
        if self.is_lent {
            return;
        }
        let image = &self.image;
        let mut lines = Vec::new();
        for Running { name, since, said } in &self.running {
            let seconds = now.saturating_duration_since(*since).as_secs();
            // What it says is news, its name is not.
            let (name, said) = match said.as_str() {
                "" => (name.clone(), String::new()),
                said => (
                    name.chars().take(columns / 2).collect(),
                    format!(": {said}"),
                ),
            };
            lines.push(format!("{image}: {seconds} s {name}{said}"));
        }
        if !self.doing.is_empty() {
            lines.push(format!("{image}: {}", self.doing));
        }
        let most = ROWS_MAX.min(rows.saturating_sub(1)).max(1);
        if lines.len() > most {
            let more = lines.len() - (most - 1);
            lines.truncate(most - 1);
            lines.push(format!("{image}: and {more} more"));
        }
        let mut text = self.back();
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            let line: String = plain(line)
                .chars()
                .take(columns.saturating_sub(1))
                .collect();
            text.push_str(&line);
            text.push_str("\x1b[K");
        }
        self.drawn = lines.len();
        let _ = write!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// Takes what is drawn away.
    fn clear(&mut self) {
        let text = self.back();
        if !text.is_empty() {
            let _ = write!(self.out, "{text}").and_then(|()| self.out.flush());
        }
    }

    /// What leads to where the drawing begins, with nothing from there on.
    fn back(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            1 => "\r\x1b[J".to_owned(),
            rows => format!("\r\x1b[{}A\x1b[J", rows - 1),
        }
    }
}

/// What a step says may hold anything, and nothing of it may move the cursor.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}

/// The display of one bake, gone when this is dropped.
pub(crate) struct Live {
    screen: Arc<Mutex<Screen<Stderr>>>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Live {
    pub(crate) fn start(image: &str, progress: Progress) -> Self {
        Self::new(image, Form::of(progress, &std::io::stderr()))
    }

    /// Whole lines, also on a terminal: of a process whose parent draws there.
    pub(crate) fn lines(image: &str) -> Self {
        Self::new(image, Form::Lines { with_output: false })
    }

    fn new(image: &str, form: Form) -> Self {
        let screen = Screen::new(image, std::io::stderr(), form);
        let screen = Arc::new(Mutex::new(screen));
        // A step that says nothing goes on all the same, and its time shows it.
        let ticker = matches!(form, Form::Terminal { .. }).then(|| {
            let screen = Arc::clone(&screen);
            let (end, ended) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    lock(&screen).draw(Instant::now());
                }
            });
            (end, thread)
        });
        Self { screen, ticker }
    }

    /// Shows it; `stays` gets the line that stays, where there is one.
    pub(crate) fn tell(&self, progress: BakeProgress, stays: &mut dyn FnMut(&str)) {
        let now = Instant::now();
        let mut screen = lock(&self.screen);
        let line = screen.tell(now, progress);
        if let Some(line) = line {
            screen.clear();
            stays(&line);
        }
        screen.draw(now);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.ticker.take() {
            drop(end);
            let _ = thread.join();
        }
        lock(&self.screen).clear();
    }
}

fn lock<W: Write>(screen: &Mutex<Screen<W>>) -> MutexGuard<'_, Screen<W>> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, cached: bool) -> BakeProgress {
        BakeProgress::Ended(StepReport {
            name: name.to_owned(),
            cached,
            duration_ms: 1500,
            key: None,
            reasons: Vec::new(),
        })
    }

    fn begins(name: &str, cached: bool) -> BakeProgress {
        BakeProgress::Step {
            name: name.to_owned(),
            cached,
        }
    }

    fn said(step: &str, line: &str) -> BakeProgress {
        BakeProgress::Said {
            step: step.to_owned(),
            line: line.to_owned(),
        }
    }

    fn told(form: Form, all: impl IntoIterator<Item = BakeProgress>) -> (String, Vec<String>) {
        let mut out = Vec::new();
        let mut screen = Screen::new("api", &mut out, form);
        let now = Instant::now();
        let mut stays = Vec::new();
        for progress in all {
            if let Some(line) = screen.tell(now, progress) {
                screen.clear();
                stays.push(line);
            }
            screen.draw(now);
        }
        screen.clear();
        drop(screen);
        (String::from_utf8(out).unwrap(), stays)
    }

    /// What a terminal shows after each drawing: only the sequences that are used here.
    fn shown(out: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut column) = (vec![String::new()], 0, 0);
        let mut all = Vec::new();
        let mut chars = out.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\r' => column = 0,
                '\n' => {
                    (row, column) = (row + 1, 0);
                    if rows.len() == row {
                        rows.push(String::new());
                    }
                }
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut number = String::new();
                    let end = loop {
                        match chars.next().unwrap() {
                            c if c.is_ascii_digit() => number.push(c),
                            c => break c,
                        }
                    };
                    match end {
                        'A' => row -= number.parse::<usize>().unwrap(),
                        'K' => rows[row].truncate(column),
                        'J' => {
                            all.push(rows.clone());
                            rows[row].truncate(column);
                            rows.truncate(row + 1);
                        }
                        other => panic!("{other}"),
                    }
                }
                c => {
                    rows[row].truncate(column);
                    rows[row].push(c);
                    column += 1;
                }
            }
        }
        all.push(rows);
        all
    }

    #[test]
    fn a_log_gets_whole_lines_and_not_one_for_each_package() {
        let fetched = (1..=100).map(|done| BakeProgress::Fetching { done, of: 100 });
        let all = std::iter::once(begins("run make", false))
            .chain(fetched)
            .chain([said("run make", "a"), ended("run make", false)])
            .chain([begins("copy", true), ended("copy", true)]);
        let (out, stays) = told(Form::Lines { with_output: false }, all);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], "api: run make begins");
        assert_eq!(lines[1], "api: 10 of 100 packages fetched");
        assert_eq!(lines.len(), 11);
        assert!(!out.contains(['\r', '\x1b']));
        assert_eq!(stays, ["api: run make took 1.50 s"]);
    }

    #[test]
    fn a_plain_log_has_what_each_step_says() {
        let all = [
            begins("a", false),
            begins("b", false),
            said("a", "one\x1b[2J"),
            said("b", "two"),
        ];
        let (out, _) = told(Form::Lines { with_output: true }, all);
        assert_eq!(
            out,
            "api: a begins\napi: b begins\napi: a: one [2J\napi: b: two\n"
        );
    }

    #[test]
    fn nothing_is_nothing() {
        let all = [begins("a", false), said("a", "one")];
        assert_eq!(told(Form::Nothing, all), (String::new(), Vec::new()));
    }

    #[test]
    fn a_terminal_has_a_line_for_each_step_that_fits_and_is_gone_at_the_end() {
        let form = Form::Terminal {
            columns: 24,
            rows: 24,
        };
        let all = [
            begins("a", false),
            begins("b", false),
            said("a", "one\x1b[2J and what is too long"),
            ended("a", false),
            begins("c", true),
            ended("c", true),
        ];
        let (out, stays) = told(form, all);
        let all = shown(&out);
        let two: Vec<String> = vec!["api: 0 s a: one [2J and".into(), "api: 0 s b".into()];
        assert!(all.contains(&two), "{all:?}");
        assert!(all.contains(&vec!["api: 0 s b".into()]), "{all:?}");
        assert_eq!(all.last().unwrap(), &vec![String::new()]);
        assert_eq!(stays, ["api: a took 1.50 s"]);
    }

    #[test]
    fn what_does_not_fit_a_terminal_is_counted() {
        let form = Form::Terminal {
            columns: 80,
            rows: 4,
        };
        let names = ["a", "b", "c", "d", "e"];
        let (out, _) = told(form, names.map(|name| begins(name, false)));
        let all = shown(&out);
        let last: Vec<String> = ["api: 0 s a", "api: 0 s b", "api: and 3 more"]
            .map(str::to_owned)
            .into();
        assert_eq!(all[all.len() - 2], last, "{all:?}");
    }
}
