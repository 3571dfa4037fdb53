//! The journal's entries: when something happened, who asked for it, what it is about, and what it was.
//!
//! An entry is read by kilns of another age than the one that wrote it. A subject, an actor or a fact that this kiln does
//! not know is therefore kept as it was written and shown as such; it is never an error.
//!
//! To journal something new, add a variant to [`Fact`] and, where it is about something new, to [`Subject`]. Neither
//! changes the format of what is there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::{Digest, EnvName, InstanceId, ProjectName, ServiceKey, StateId, Timestamp};

/// Who asked for something. Where nobody did, kiln itself decided it: `Option<Actor>` is `None`.
///
/// In JSON a uid is a number, as it was before there were other actors; anything else is its text form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// The uid of the process at the other end of the unix socket.
    Uid(u32),
    /// A user of kiln, by name.
    User(String),
    /// An access token, by its id. The token itself is in no entry.
    Token(String),
    /// Written by a kiln that knows other actors: its text form.
    Other(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Actor {
    fn from(text: &str) -> Self {
        let known = match text.split_once(':') {
            Some(("uid", uid)) => uid.parse().ok().map(Self::Uid),
            Some(("user", name)) => Some(Self::User(name.to_owned())),
            Some(("token", id)) => Some(Self::Token(id.to_owned())),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other(text.to_owned()))
    }
}

impl Serialize for Actor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uid(uid) => serializer.serialize_u32(*uid),
            Self::User(_) | Self::Token(_) | Self::Other(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Uid(u32),
            Text(String),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Uid(uid) => Self::Uid(uid),
            Form::Text(text) => Self::from(text.as_str()),
        })
    }
}

/// What an entry is about. Written `KIND:NAME`, such as `service:dev/api`; the machine is `machine`. The text form is
/// stable: the journal is indexed by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Subject {
    Service(ServiceKey),
    Environment(EnvName),
    Project(ProjectName),
    Image(Digest),
    Instance(InstanceId),
    User(String),
    /// The host with its data root, the journal included.
    Machine,
    /// Written by a kiln that knows other subjects: its text form.
    Other(String),
}

impl Subject {
    /// The environment that the subject is, or is in.
    pub fn environment(&self) -> Option<&EnvName> {
        match self {
            Self::Service(key) => Some(&key.environment),
            Self::Environment(name) => Some(name),
            Self::Project(_)
            | Self::Image(_)
            | Self::Instance(_)
            | Self::User(_)
            | Self::Machine
            | Self::Other(_) => None,
        }
    }

    pub fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Service(key) => Some(key),
            Self::Environment(_)
            | Self::Project(_)
            | Self::Image(_)
            | Self::Instance(_)
            | Self::User(_)
            | Self::Machine
            | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service:{key}"),
            Self::Environment(name) => write!(f, "environment:{name}"),
            Self::Project(name) => write!(f, "project:{name}"),
            Self::Image(digest) => write!(f, "image:{digest}"),
            Self::Instance(id) => write!(f, "instance:{id}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Machine => f.write_str("machine"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl FromStr for Subject {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let known = match text.split_once(':') {
            None if text == "machine" => Some(Self::Machine),
            Some(("service", key)) => key.to_owned().try_into().ok().map(Self::Service),
            Some(("environment", name)) => name.parse().ok().map(Self::Environment),
            Some(("project", name)) => name.parse().ok().map(Self::Project),
            Some(("image", digest)) => digest.parse().ok().map(Self::Image),
            Some(("instance", id)) => id.parse().ok().map(Self::Instance),
            Some(("user", name)) => Some(Self::User(name.to_owned())),
            _ => None,
        };
        Ok(known.unwrap_or_else(|| Self::Other(text.to_owned())))
    }
}

impl From<String> for Subject {
    fn from(text: String) -> Self {
        let Ok(subject) = text.parse();
        subject
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

/// Something that happened, at one instant, to one subject.
///
/// `S` is what a step of a service is: `kiln-plan`'s record of it where it is decided and journalled, plain JSON where it is
/// only shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: DeserializeOwned"))]
pub struct Entry<S = Value> {
    pub at: Timestamp,
    /// `None`: kiln itself.
    pub actor: Option<Actor>,
    pub subject: Subject,
    pub fact: Fact<S>,
}

/// What happened. In JSON an object with its `kind`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact<S = Value> {
    /// The planner took one step.
    Service(S),
    /// Old entries were folded.
    Snapshot(Snapshot),
    /// Written by a kiln that knows more facts: the whole object as it is.
    Unknown(Value),
}

/// All entries up to one are gone, and the chain of hashes goes on from that one's. The snapshot is an entry of the same
/// chain, so that it can't be changed either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last entry that was folded.
    pub up_to: StateId,
    /// Its hash in the chain.
    pub hash: Digest,
    /// The SHA-256 of each service's state when this was written.
    pub states: BTreeMap<ServiceKey, Digest>,
}

const SERVICE: &str = "service";
const SNAPSHOT: &str = "snapshot";

impl<S> Fact<S> {
    /// The stable name of its kind: the journal is indexed by it. Empty for an unknown fact without one.
    pub fn kind(&self) -> &str {
        match self {
            Self::Service(_) => SERVICE,
            Self::Snapshot(_) => SNAPSHOT,
            Self::Unknown(raw) => raw.get("kind").and_then(Value::as_str).unwrap_or_default(),
        }
    }
}

impl<S: Serialize> Serialize for Fact<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        #[derive(Serialize)]
        struct Tagged<'a, F> {
            kind: &'static str,
            #[serde(flatten)]
            fact: &'a F,
        }
        match self {
            Self::Service(fact) => Tagged {
                kind: SERVICE,
                fact,
            }
            .serialize(serializer),
            Self::Snapshot(fact) => Tagged {
                kind: SNAPSHOT,
                fact,
            }
            .serialize(serializer),
            Self::Unknown(raw) => raw.serialize(serializer),
        }
    }
}

impl<'de, S: DeserializeOwned> Deserialize<'de> for Fact<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        // A known kind with a content that this kiln can't read, such as a new event, is unknown as a whole.
        let known = match raw.get("kind").and_then(Value::as_str) {
            Some(SERVICE) => S::deserialize(content(&raw)).ok().map(Self::Service),
            Some(SNAPSHOT) => Snapshot::deserialize(content(&raw))
                .ok()
                .map(Self::Snapshot),
            _ => None,
        };
        Ok(known.unwrap_or(Self::Unknown(raw)))
    }
}

/// The members of a fact without its `kind`.
fn content(raw: &Value) -> Value {
    let mut content = raw.clone();
    if let Value::Object(members) = &mut content {
        members.remove("kind");
    }
    content
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subjects_and_actors_have_a_stable_text_form() {
        let digest = Digest::of(b"x");
        let subjects = [
            (
                Subject::Service("dev/api".to_owned().try_into().unwrap()),
                "service:dev/api".to_owned(),
            ),
            (
                Subject::Environment("dev".parse().unwrap()),
                "environment:dev".to_owned(),
            ),
            (
                Subject::Project("shop".parse().unwrap()),
                "project:shop".to_owned(),
            ),
            (Subject::Image(digest), format!("image:{digest}")),
            (
                Subject::Instance(InstanceId::new("api-dev-1-1")),
                "instance:api-dev-1-1".to_owned(),
            ),
            (Subject::User("jan".to_owned()), "user:jan".to_owned()),
            (Subject::Machine, "machine".to_owned()),
            (
                Subject::Other("volume:dev/data".to_owned()),
                "volume:dev/data".to_owned(),
            ),
            (
                Subject::Other("service:no key".to_owned()),
                "service:no key".to_owned(),
            ),
        ];
        for (subject, text) in subjects {
            assert_eq!(subject.to_string(), text);
            assert_eq!(Subject::from(text), subject);
        }
        let actors = [
            (Actor::Uid(1000), json!(1000)),
            (Actor::User("jan".to_owned()), json!("user:jan")),
            (Actor::Token("ci-1".to_owned()), json!("token:ci-1")),
            (Actor::Other("robot:7".to_owned()), json!("robot:7")),
        ];
        for (actor, form) in actors {
            assert_eq!(serde_json::to_value(&actor).unwrap(), form);
            assert_eq!(serde_json::from_value::<Actor>(form).unwrap(), actor);
        }
        assert_eq!(Actor::from("uid:7"), Actor::Uid(7));
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        event: u32,
    }

    #[test]
    fn a_fact_of_a_newer_kiln_is_kept_as_it_is() {
        let known = json!({"at": 5, "actor": 0, "subject": "service:dev/api", "fact": {"kind": "service", "event": 3}});
        let entry: Entry<Step> = serde_json::from_value(known.clone()).unwrap();
        assert_eq!(entry.fact, Fact::Service(Step { event: 3 }));
        assert_eq!(serde_json::to_value(&entry).unwrap(), known);
        for fact in [
            json!({"kind": "ban", "reason": "CVE"}),
            json!({"kind": "service", "event": "of another form"}),
            json!({"kind": "snapshot", "up_to": "of another form"}),
            json!("no object"),
        ] {
            let raw = json!({"at": 5, "actor": null, "subject": "moon:1", "fact": fact});
            let entry: Entry<Step> = serde_json::from_value(raw.clone()).unwrap();
            assert_eq!(entry.fact, Fact::Unknown(fact));
            assert_eq!(serde_json::to_value(&entry).unwrap(), raw);
        }
    }

    #[test]
    fn a_snapshot_is_a_fact_like_others() {
        let snapshot = Snapshot {
            up_to: StateId(7),
            hash: Digest::of(b"seven"),
            states: BTreeMap::from([(
                "dev/api".to_owned().try_into().unwrap(),
                Digest::of(b"state"),
            )]),
        };
        let fact: Fact<Step> = Fact::Snapshot(snapshot);
        let json = serde_json::to_value(&fact).unwrap();
        assert_eq!(json["kind"], "snapshot");
        assert_eq!(serde_json::from_value::<Fact<Step>>(json).unwrap(), fact);
    }
}
