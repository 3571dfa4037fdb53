//! Why an instance could not be started: what kind of fault it was, and what to do about it.

use serde::{Deserialize, Serialize};

/// Why an instance could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct StartFailure {
    pub fault: StartFault,
    /// What failed and what to do, for a person.
    pub detail: String,
}

impl StartFailure {
    pub fn new(fault: StartFault, detail: impl Into<String>) -> Self {
        Self {
            fault,
            detail: detail.into(),
        }
    }

    /// Trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        self.fault.is_permanent()
    }
}

/// The kind of a failed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StartFault {
    /// The image can't be used: it is not in the store, or a layer of it is missing or was changed.
    Image,
    /// The image has no such command, or not what the command is interpreted by.
    CommandNotFound,
    /// The command is there, and it can't be executed: by the instance's user, or on this machine.
    CommandNotExecutable,
    /// The working folder can't be entered.
    WorkingFolder,
    /// The image does not know the user or the group.
    User,
    /// Command and environment are larger than the kernel takes.
    ArgumentsTooLarge,
    /// A limit of the release is too small for any start.
    LimitTooSmall,
    /// The release asks for something that kiln or this image can't give, such as a tmpfs where the image has a file.
    Release,
    /// A newer command to this instance was carried out already.
    Superseded,
    /// It had been started, and has ended since: what ended is not started again.
    Ended,
    /// Layers or file systems could not be mounted.
    Mount,
    /// Its network could not be made.
    Network,
    /// The machine lacks something at this moment: memory, processes, descriptors, disk, or a right of kiln's own.
    Host,
    /// Said by a version of kiln that did not name this kind yet, or that knows more kinds.
    Unclassified { permanent: bool },
}

impl StartFault {
    /// Trying again cannot help: the cause is in the release or its image, not in the state of the machine.
    pub fn is_permanent(self) -> bool {
        match self {
            Self::Image
            | Self::CommandNotFound
            | Self::CommandNotExecutable
            | Self::WorkingFolder
            | Self::User
            | Self::ArgumentsTooLarge
            | Self::LimitTooSmall
            | Self::Release
            | Self::Superseded => true,
            Self::Ended | Self::Mount | Self::Network | Self::Host => false,
            Self::Unclassified { permanent } => permanent,
        }
    }

    /// The name in journals and messages, which never changes. `None`: unclassified.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Image => "image",
            Self::CommandNotFound => "command_not_found",
            Self::CommandNotExecutable => "command_not_executable",
            Self::WorkingFolder => "working_folder",
            Self::User => "user",
            Self::ArgumentsTooLarge => "arguments_too_large",
            Self::LimitTooSmall => "limit_too_small",
            Self::Release => "release",
            Self::Superseded => "superseded",
            Self::Ended => "ended",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Host => "host",
            Self::Unclassified { .. } => return None,
        })
    }

    const NAMED: [Self; 13] = [
        Self::Image,
        Self::CommandNotFound,
        Self::CommandNotExecutable,
        Self::WorkingFolder,
        Self::User,
        Self::ArgumentsTooLarge,
        Self::LimitTooSmall,
        Self::Release,
        Self::Superseded,
        Self::Ended,
        Self::Mount,
        Self::Network,
        Self::Host,
    ];
}

/// A failure as it is written, of every version of kiln.
#[derive(Serialize, Deserialize)]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    /// The first version said `message`.
    #[serde(alias = "message")]
    detail: String,
    /// For a reader that does not know the fault.
    permanent: bool,
}

impl From<Form> for StartFailure {
    fn from(form: Form) -> Self {
        let Form {
            fault,
            detail,
            permanent,
        } = form;
        let known = |named: &StartFault| named.name() == fault.as_deref();
        let fault = StartFault::NAMED.into_iter().find(known);
        Self {
            fault: fault.unwrap_or(StartFault::Unclassified { permanent }),
            detail,
        }
    }
}

impl From<StartFailure> for Form {
    fn from(failure: StartFailure) -> Self {
        let StartFailure { fault, detail } = failure;
        Self {
            fault: fault.name().map(str::to_owned),
            detail,
            permanent: fault.is_permanent(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> StartFailure {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let old = r#"{"message":"the image has no `nothing` in its PATH","permanent":true}"#;
        let failure = read(old);
        assert_eq!(failure.fault, StartFault::Unclassified { permanent: true });
        assert_eq!(failure.detail, "the image has no `nothing` in its PATH");
        let old = r#"{"message":"making a pipe: Too many open files","permanent":false}"#;
        assert!(!read(old).is_permanent());
        // Written again, it says as much as before.
        let again = serde_json::to_string(&failure).unwrap();
        assert_eq!(read(&again), failure);
    }

    #[test]
    fn a_fault_of_a_later_version_is_read_by_whether_it_can_heal() {
        let later = r#"{"fault":"secret_missing","detail":"…","permanent":true,"secret":"X"}"#;
        assert_eq!(
            read(later).fault,
            StartFault::Unclassified { permanent: true }
        );
    }

    #[test]
    fn every_fault_comes_back_by_its_name() {
        for fault in StartFault::NAMED {
            let failure = StartFailure::new(fault, "text");
            let json = serde_json::to_string(&failure).unwrap();
            assert_eq!(read(&json), failure, "{json}");
        }
        let mount = StartFailure::new(StartFault::Mount, "text");
        assert_eq!(
            serde_json::to_string(&mount).unwrap(),
            r#"{"fault":"mount","detail":"text","permanent":false}"#
        );
    }
}
