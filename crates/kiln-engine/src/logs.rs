//! What an instance says: one line of text each, `MILLISECONDS STREAM TEXT`, in a file of bounded size and the one before it.
//!
//! `STREAM` is `1` for stdout and `2` for stderr. A line longer than [`LINE_LIMIT`] is split.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// The shim's side. Lines are gathered and written together, because an instance may say a million of them a second: what a
/// flood of lines costs is the shim's, and no limit of the instance bounds it.
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    /// What every line of this moment begins with.
    prefix: String,
    gathered: Vec<u8>,
    last: VecDeque<Vec<u8>>,
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
            prefix: String::new(),
            gathered: Vec::new(),
            last: VecDeque::new(),
        })
    }

    /// The lines from now on were said at `at`, in milliseconds since 1970.
    pub(crate) fn begin(&mut self, at: u64, stderr: bool) {
        self.prefix = format!("{at} {} ", if stderr { 2 } else { 1 });
    }

    /// On the disk with the next [`Writer::flush`].
    pub(crate) fn line(&mut self, text: &[u8]) -> io::Result<()> {
        let mut kept = if self.last.len() == LAST {
            self.last.pop_front().unwrap_or_default()
        } else {
            Vec::new()
        };
        kept.clear();
        kept.extend_from_slice(text);
        self.last.push_back(kept);
        let text = String::from_utf8_lossy(text);
        let length = (self.prefix.len() + text.len() + 1) as u64;
        if self.size + self.gathered.len() as u64 + length > self.limit {
            self.flush()?;
            fs::rename(&self.path, older(&self.path))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.gathered.extend_from_slice(self.prefix.as_bytes());
        self.gathered.extend_from_slice(text.as_bytes());
        self.gathered.push(b'\n');
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.gathered);
        self.size += self.gathered.len() as u64;
        // Also what could not be written: it must not gather without end.
        self.gathered.clear();
        written
    }

    pub(crate) fn last_lines(&self) -> Vec<String> {
        let lines = self.last.iter();
        lines
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect()
    }
}

/// Logs of ended instances that are kept.
const KEPT: usize = 100;
/// What they may take on the disk together, in bytes.
const KEPT_BYTES: u64 = 512 << 20;
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Removes logs from a folder of them, but for the newest. `now` is the wall clock's.
pub(crate) fn forget_old(folder: &Path, now: Duration) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut logs: Vec<(Duration, u64, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            let at = Duration::from_secs(u64::try_from(meta.mtime()).unwrap_or(0))
                + Duration::from_nanos(u64::try_from(meta.mtime_nsec()).unwrap_or(0));
            Some((at, meta.len(), entry.path()))
        })
        .collect();
    logs.sort();
    let mut bytes = 0;
    for (index, (at, size, path)) in logs.iter().rev().enumerate() {
        bytes += size;
        if index >= KEPT || bytes > KEPT_BYTES || now.saturating_sub(*at) > KEPT_FOR {
            // One that stays is forgotten the next time.
            let _ = fs::remove_file(path);
        }
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
    file: Option<Open>,
}

/// A log file that is being read. While it is open, no other file has its number.
struct Open {
    file: BufReader<File>,
    number: u64,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
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
        let mut reader = Self {
            path: path.to_owned(),
            // Read as if it had been the present one so far: so what is turned over meanwhile is read once.
            file: Open::at(&older(path))?,
        };
        loop {
            let Batch { lines: some, more } = reader.read_some(BATCH)?;
            some.into_iter().for_each(&mut keep);
            if !more {
                return Ok((lines.into(), reader));
            }
        }
    }

    /// What was written since the last call. Of a log that was turned over several times since then, what is left.
    pub fn read_new(&mut self) -> io::Result<Vec<Line>> {
        Ok(self.read_some(usize::MAX)?.lines)
    }

    /// As [`Reader::read_new`], but only about `limit` bytes of it: a log that was not read for long has millions of lines.
    pub fn read_some(&mut self, limit: usize) -> io::Result<Batch> {
        let mut taken = Taken {
            lines: Vec::new(),
            left: limit,
        };
        if let Some(open) = &mut self.file {
            open.drain(&mut taken)?;
        }
        while taken.left > 0 {
            let Some(mut present) = Open::at(&self.path)? else {
                return Ok(taken.end());
            };
            if self.file.as_ref().map(|open| open.number) == Some(present.number) {
                return Ok(taken.end());
            }
            // It was turned over: no line comes to the old file any more, so that this reads its rest.
            let old = self.file.as_mut();
            let old = old.map(|open| open.drain(&mut taken).map(|()| open.number));
            let old = old.transpose()?;
            if taken.left == 0 {
                break;
            }
            // Turned over twice: the one in between is the older one by now.
            if let Some(mut between) = Open::at(&older(&self.path))?
                && Some(between.number) != old
                && between.number != present.number
            {
                between.drain(&mut taken)?;
                if taken.left == 0 {
                    self.file = Some(between);
                    break;
                }
            }
            present.drain(&mut taken)?;
            // And once more, should that have taken so long that it was turned over again.
            self.file = Some(present);
        }
        Ok(taken.end())
    }
}

/// Lines that were read together.
pub struct Batch {
    pub lines: Vec<Line>,
    /// There may be more already.
    pub more: bool,
}

/// What [`Reader::tail`] has in memory at once, besides what it gives.
const BATCH: usize = 1 << 20;

struct Taken {
    lines: Vec<Line>,
    /// Bytes that may still be read.
    left: usize,
}

impl Taken {
    fn end(self) -> Batch {
        Batch {
            lines: self.lines,
            more: self.left == 0,
        }
    }
}

impl Open {
    /// `None`: there is no such file.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self {
                number: file.metadata()?.ino(),
                file: BufReader::new(file),
                partial: Vec::new(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// To the end of the file, or until enough was read.
    fn drain(&mut self, taken: &mut Taken) -> io::Result<()> {
        while taken.left > 0 {
            let read = self.file.read_until(b'\n', &mut self.partial)?;
            if read == 0 || self.partial.pop_if(|last| *last == b'\n').is_none() {
                break;
            }
            taken.left = taken.left.saturating_sub(read);
            taken
                .lines
                .extend(parse(&String::from_utf8_lossy(&self.partial)));
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
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.end(&rest[..end], &mut line);
            rest = &rest[end + 1..];
        }
        self.0.extend_from_slice(rest);
        while self.0.len() > LINE_LIMIT {
            let rest = self.0.split_off(LINE_LIMIT);
            line(&std::mem::replace(&mut self.0, rest));
        }
    }

    /// A line ends with `text`.
    fn end(&mut self, text: &[u8], line: &mut impl FnMut(&[u8])) {
        let whole = if self.0.is_empty() {
            text
        } else {
            self.0.extend_from_slice(text);
            &self.0
        };
        let mut pieces = whole.chunks(LINE_LIMIT);
        // An empty line is a line.
        line(pieces.next().unwrap_or_default());
        pieces.for_each(line);
        self.0.clear();
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

    fn write(writer: &mut Writer, numbers: std::ops::Range<u64>) {
        for number in numbers {
            writer.begin(number, number % 2 == 1);
            writer.line(format!("line {number}").as_bytes()).unwrap();
            writer.flush().unwrap();
        }
    }

    fn numbers(lines: &[Line]) -> Vec<u64> {
        lines.iter().map(|line| line.at).collect()
    }

    #[test]
    fn a_log_is_bounded_and_read_over_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let mut writer = Writer::open(folder.path(), 0).unwrap();
        let (none, mut reader) = Reader::tail(&path, 5).unwrap();
        assert!(none.is_empty());
        let mut read = Vec::new();
        for hundred in 0..100 {
            write(&mut writer, hundred * 100..hundred * 100 + 100);
            read.extend(numbers(&reader.read_new().unwrap()));
        }
        assert_eq!(read, (0..10_000).collect::<Vec<_>>());
        let (last, _) = Reader::tail(&path, 2).unwrap();
        assert_eq!(
            last[1],
            Line {
                at: 9999,
                stderr: true,
                text: "line 9999".into()
            }
        );
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 64 * 1024 && size(&older(&path)) <= 64 * 1024);
    }

    #[test]
    fn a_log_is_read_in_pieces_over_its_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let mut writer = Writer::open(folder.path(), 0).unwrap();
        write(&mut writer, 0..100);
        let (_, mut reader) = Reader::tail(&path, 0).unwrap();
        // Turned over twice: three files, in pieces that end anywhere.
        write(&mut writer, 100..8000);
        let mut read = Vec::new();
        loop {
            let Batch { lines, more } = reader.read_some(1000).unwrap();
            assert!(lines.len() < 100);
            read.extend(numbers(&lines));
            if !more {
                break;
            }
        }
        assert_eq!(read, (100..8000).collect::<Vec<_>>());
    }

    /// A file of 64 KiB has some 3,500 of these lines.
    #[test]
    fn a_log_that_was_turned_over_twice_between_two_readings_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let mut writer = Writer::open(folder.path(), 0).unwrap();
        write(&mut writer, 0..100);
        let (_, mut reader) = Reader::tail(&path, 0).unwrap();
        write(&mut writer, 100..8_000);
        assert_eq!(
            numbers(&reader.read_new().unwrap()),
            (100..8_000).collect::<Vec<_>>()
        );
        assert!(reader.read_new().unwrap().is_empty());
    }

    #[test]
    fn no_line_is_lost_to_a_reader_beside_the_writer() {
        const LINES: u64 = 60_000;
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        // Long enough that a reader comes by at least once for each file.
        let mut writer = Writer::open(folder.path(), 1 << 20).unwrap();
        let (_, mut reader) = Reader::tail(&path, 0).unwrap();
        let mut read = Vec::new();
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || write(&mut writer, 0..LINES));
            while !writing.is_finished() {
                read.extend(numbers(&reader.read_new().unwrap()));
            }
        });
        read.extend(numbers(&reader.read_new().unwrap()));
        assert!(read.iter().copied().eq(0..LINES), "{} lines", read.len());
    }

    #[test]
    fn bytes_are_cut_into_lines_of_bounded_length() {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        let mut take = |line: &[u8]| lines.push(line.to_vec());
        splitter.push(b"a\n\nb", &mut take);
        splitter.push(b"c\nd", &mut take);
        splitter.push(&[b'x'; LINE_LIMIT * 2], &mut take);
        splitter.push(&[b'y'; 10], &mut take);
        splitter.push(b"\n", &mut take);
        splitter.push(&[b'z'; LINE_LIMIT + 1], &mut take);
        splitter.finish(&mut take);
        let lengths: Vec<usize> = lines.iter().map(Vec::len).collect();
        assert_eq!(lines[..3], [b"a".to_vec(), b"".to_vec(), b"bc".to_vec()]);
        assert_eq!(lengths[3..], [LINE_LIMIT, LINE_LIMIT, 11, LINE_LIMIT, 1]);
    }

    #[test]
    fn old_logs_are_forgotten_by_number_size_and_age() {
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 3600);
        let now = day * 20_000;
        let add = |name: &str, age: Duration, size: u64| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(size).unwrap();
            let at = std::time::SystemTime::UNIX_EPOCH + (now - age);
            file.set_modified(at).unwrap();
        };
        let left = || {
            let mut names: Vec<_> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        for age in 0..110 {
            add(&format!("{age:03}"), Duration::from_secs(age), 1);
        }
        forget_old(folder.path(), now);
        assert_eq!(
            left(),
            (0..100).map(|age| format!("{age:03}")).collect::<Vec<_>>()
        );
        // Newer than all, and so large that there is room for nothing else.
        add("large", Duration::ZERO, KEPT_BYTES);
        add("000", Duration::from_secs(1), 1);
        forget_old(folder.path(), now);
        assert_eq!(left(), ["large"]);
        forget_old(folder.path(), now + KEPT_FOR + day);
        assert_eq!(left(), [""; 0]);
        forget_old(&folder.path().join("none"), now);
    }

    #[test]
    fn the_last_lines_are_kept_whatever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), 0).unwrap();
        write(&mut writer, 0..50);
        writer.line(b"no \xff text").unwrap();
        let last = writer.last_lines();
        assert_eq!((last.len(), last[0].as_str()), (LAST, "line 31"));
        assert_eq!(last[19], "no \u{fffd} text");
    }
}
