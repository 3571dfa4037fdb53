//! What an instance says: one line of text each, `MILLISECONDS STREAM TEXT`, in a file of bounded size and the one before it.
//!
//! `STREAM` is `1` for stdout and `2` for stderr. A line longer than [`LINE_LIMIT`] is split.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(crate) const LINE_LIMIT: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Milliseconds since 1970.
    pub at: u64,
    pub stderr: bool,
    pub text: String,
}

/// The present log file below an instance's folder; the one before it has `.1` at its end.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1")
}

pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    last: VecDeque<String>,
}

/// Lines that are told when an instance fails.
const LAST: usize = 20;

impl Writer {
    pub(crate) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        let path = path(folder);
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            size,
            limit: limit.max(64 * 1024),
            last: VecDeque::new(),
        })
    }

    pub(crate) fn line(&mut self, at: u64, stderr: bool, text: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(text);
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(text.clone().into_owned());
        let line = format!("{at} {} {text}\n", if stderr { 2 } else { 1 });
        if self.size + line.len() as u64 > self.limit {
            fs::rename(&self.path, older(&self.path))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(line.as_bytes())?;
        self.size += line.len() as u64;
        Ok(())
    }

    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}

fn parse(line: &str) -> Option<Line> {
    let (at, rest) = line.split_once(' ')?;
    let (stream, text) = rest.split_once(' ')?;
    Some(Line {
        at: at.parse().ok()?,
        stderr: stream == "2",
        text: text.to_owned(),
    })
}

/// Reads a log from its end on, and then what is added.
pub struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    inode: u64,
    partial: String,
}

impl Reader {
    /// The last `count` lines, and a reader of what comes after.
    pub fn tail(path: &Path, count: usize) -> io::Result<(Vec<Line>, Self)> {
        let mut lines = VecDeque::new();
        let mut keep = |line: Line| {
            if lines.len() == count {
                lines.pop_front();
            }
            if count > 0 {
                lines.push_back(line);
            }
        };
        if let Ok(file) = File::open(older(path)) {
            for line in BufReader::new(file).lines() {
                parse(&line?).into_iter().for_each(&mut keep);
            }
        }
        let mut reader = Self {
            path: path.to_owned(),
            file: None,
            inode: 0,
            partial: String::new(),
        };
        reader.read_new()?.into_iter().for_each(&mut keep);
        Ok((lines.into(), reader))
    }

    /// What was written since the last call.
    pub fn read_new(&mut self) -> io::Result<Vec<Line>> {
        use std::os::unix::fs::MetadataExt;
        let mut lines = Vec::new();
        self.drain(&mut lines)?;
        // The file was turned over, or is there for the first time: its rest was just read.
        match fs::metadata(&self.path) {
            Ok(there) if self.file.is_none() || there.ino() != self.inode => {
                self.inode = there.ino();
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(0))?;
                self.file = Some(BufReader::new(file));
                self.drain(&mut lines)?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(lines)
    }

    fn drain(&mut self, lines: &mut Vec<Line>) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        while file.read_line(&mut self.partial)? > 0 {
            if !self.partial.ends_with('\n') {
                break;
            }
            lines.extend(parse(self.partial.trim_end_matches('\n')));
            self.partial.clear();
        }
        Ok(())
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub(crate) struct Splitter(Vec<u8>);

impl Splitter {
    pub(crate) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for byte in bytes {
            if *byte == b'\n' || self.0.len() >= LINE_LIMIT {
                line(&self.0);
                self.0.clear();
            }
            if *byte != b'\n' {
                self.0.push(*byte);
            }
        }
    }

    pub(crate) fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            line(&self.0);
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_read_over_its_turn() {
        let folder = std::env::temp_dir().join(format!("kiln-log-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut writer = Writer::open(&folder, 0).unwrap();
        let (none, mut reader) = Reader::tail(&path(&folder), 5).unwrap();
        assert!(none.is_empty());
        let mut seen = 0;
        for number in 0..10_000_u64 {
            writer
                .line(number, number % 2 == 1, format!("line {number}").as_bytes())
                .unwrap();
            if number % 100 == 0 {
                seen += reader.read_new().unwrap().len();
            }
        }
        seen += reader.read_new().unwrap().len();
        assert_eq!(seen, 10_000);
        let (last, _) = Reader::tail(&path(&folder), 2).unwrap();
        assert_eq!(
            last[1],
            Line {
                at: 9999,
                stderr: true,
                text: "line 9999".into()
            }
        );
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path(&folder)) <= 64 * 1024 && size(&older(&path(&folder))) <= 64 * 1024);
        fs::remove_dir_all(&folder).unwrap();
    }
}
