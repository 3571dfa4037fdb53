//! What an instance has on disk, for an engine that did not start it: enough to adopt it, to stop it and to remove what is left of
//! it. Nothing of its environment: that goes to the shim in memory.
//!
//! Engines and shims of different age read each other's files: a running shim is of the program that started it. So a reader takes
//! what it knows, and misses nothing that an earlier version did not write.

use std::io;
use std::path::{Path, PathBuf};

use kiln_fs::ProcessId;
use kiln_model::{ExitRecord, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::Link;

const RECORD: &str = "spec.json";
const RUNNING: &str = "running.json";
const EXIT: &str = "exit.json";
/// Held by the shim for as long as it lives.
pub(crate) const LOCK: &str = "lock";
/// For shims that take no value with their signal: the grace of a stop in milliseconds.
pub(crate) const GRACE: &str = "grace";

/// Of the files below. What only adds fields leaves it as it is.
const FORMAT: u32 = 2;

/// Written before anything is made for the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RecordForm")]
pub(crate) struct Record {
    format: u32,
    pub(crate) generation: u64,
    /// The mount points of its layers, bottom to top.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) link: Option<Link>,
}

/// A record of any version.
#[derive(Deserialize)]
struct RecordForm {
    #[serde(default)]
    format: u32,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    layers: Vec<PathBuf>,
    #[serde(default)]
    link: Option<Link>,
    /// The first version had the whole specification here.
    #[serde(default)]
    instance: Option<FirstSpec>,
}

#[derive(Deserialize)]
struct FirstSpec {
    generation: u64,
}

impl From<RecordForm> for Record {
    fn from(form: RecordForm) -> Self {
        let RecordForm {
            format,
            generation,
            layers,
            link,
            instance,
        } = form;
        Self {
            format,
            generation: instance.map_or(generation, |first| first.generation),
            layers,
            link,
        }
    }
}

impl Record {
    pub(crate) fn new(generation: u64, layers: Vec<PathBuf>, link: Option<Link>) -> Self {
        Self {
            format: FORMAT,
            generation,
            layers,
            link,
        }
    }

    /// `None`: nothing was ever made of the instance, or nothing is left.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        read_json(&folder.join(RECORD))
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write_json(&folder.join(RECORD), self)
    }

    pub(crate) fn remove(folder: &Path) -> io::Result<()> {
        std::fs::remove_file(folder.join(RECORD))
    }
}

/// Who runs: enough to find it again and to know that it is it. Written by the shim once the application was executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    #[serde(default)]
    format: u32,
    shim: i32,
    shim_start: u64,
    /// The application's.
    pub(crate) pid: i32,
    boot: String,
    pub(crate) at: Timestamp,
}

impl Running {
    pub(crate) fn new(shim: ProcessId, pid: i32, at: Timestamp) -> Self {
        Self {
            format: FORMAT,
            shim: shim.pid,
            shim_start: shim.start_time,
            boot: shim.boot,
            pid,
            at,
        }
    }

    pub(crate) fn shim(&self) -> ProcessId {
        ProcessId {
            pid: self.shim,
            start_time: self.shim_start,
            boot: self.boot.clone(),
        }
    }

    /// Whether its shim takes the grace of a stop with the signal. The first version read it from a file.
    pub(crate) fn takes_grace_with_signal(&self) -> bool {
        self.format >= 2
    }

    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        read_json(&folder.join(RUNNING))
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write_json(&folder.join(RUNNING), self)
    }
}

pub(crate) fn read_exit(folder: &Path) -> io::Result<Option<ExitRecord>> {
    read_json(&folder.join(EXIT))
}

pub(crate) fn write_exit(folder: &Path, record: &ExitRecord) -> io::Result<()> {
    write_json(&folder.join(EXIT), record)
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    kiln_fs::replace(path, &serde_json::to_vec(value)?)
}

/// `None`: there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match kiln_fs::read_optional(path)? {
        Some(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As commit 4fcb2c2 wrote it.
    const FIRST_SPEC: &str = r#"{"instance":{"id":"api-7-1","generation":41,"layers":[{"path":"/k/store/erofs/aa.erofs",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],"argv":["/api"],
        "env":[["PASSWORD","hunter2"]],"cwd":"","user":"app","stop_signal":"","tmpfs":[],"memory":67108864,"cpu_millis":null,
        "pids":64,"hostname":"api-7-1","network":true,"egress":true,"search":null,"log_max_bytes":1048576},
        "folder":"/k/instances/api-7-1","layers":["/k/run/layers/aa"],"cgroup":"kiln-12345678/api-7-1",
        "name_server":"10.64.0.1","bridge":"kiln12345678","outside":"k1234abcdef01",
        "link":{"address":"10.64.0.7","prefix":23,"gateway":"10.64.0.1"}}"#;

    const FIRST_RUNNING: &str = r#"{"shim":700,"shim_start":4242,"pid":702,"pid_start":4250,"boot":"b","at":1700000000000}"#;

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let record: Record = serde_json::from_str(FIRST_SPEC).unwrap();
        assert_eq!(record.generation, 41);
        assert_eq!(record.layers, [PathBuf::from("/k/run/layers/aa")]);
        let link = record.link.unwrap();
        assert_eq!(link.address.to_string(), "10.64.0.7");
        let running: Running = serde_json::from_str(FIRST_RUNNING).unwrap();
        let shim = ProcessId {
            pid: 700,
            start_time: 4242,
            boot: "b".to_owned(),
        };
        assert_eq!((running.shim(), running.pid), (shim, 702));
        assert!(!running.takes_grace_with_signal());
    }

    #[test]
    fn what_a_later_version_adds_is_no_trouble() {
        let later = r#"{"format":9,"generation":3,"layers":[],"link":null,"volumes":["x"]}"#;
        let record: Record = serde_json::from_str(later).unwrap();
        assert_eq!(record.generation, 3);
        let later = FIRST_RUNNING.replace("{\"shim\"", "{\"format\":9,\"new\":1,\"shim\"");
        let running: Running = serde_json::from_str(&later).unwrap();
        assert!(running.takes_grace_with_signal());
    }

    #[test]
    fn a_record_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), None);
        let record = Record::new(7, vec!["/a".into()], None);
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), Some(record));
        std::fs::write(folder.path().join(RECORD), "{").unwrap();
        assert!(Record::read(folder.path()).is_err());
    }
}
