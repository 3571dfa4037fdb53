//! The local engine: instances and bake steps as containers, with nothing of the host executed.
//!
//! One shim process per instance ([`shim`]), re-executed from a sealed copy of this program; kiln's init is pid 1
//! of the instance and the application pid 2. The container is made with the kernel's own calls rather than with a
//! runtime library: kiln needs its own init, its own network and bake steps in one shape, and what remains of a runtime
//! is a few hundred lines that have to be exactly right for us anyway.
//!
//! The only crate with unsafe code; all of it is in [`sys`].

#![warn(clippy::undocumented_unsafe_blocks)]
#![allow(clippy::disallowed_methods)] // the edge: exit records carry the wall clock

mod cgroup;
mod children;
mod container;
mod engine;
mod firewall;
mod init;
mod layers;
pub mod logs;
pub mod memory;
mod mounts;
mod names;
pub mod namespaces;
mod net;
mod netlink;
mod nftables;
mod overlay;
mod program;
mod record;
mod rights;
mod roles;
mod root;
mod rootfs;
pub mod sandbox;
mod seccomp;
mod shim;
mod spec;
mod step_network;
#[allow(unsafe_code)]
mod sys;
mod tmpfs;
mod tree;
mod users;

pub use engine::{Engine, EngineError, EngineOptions, InstanceState, StartError, Started};
pub use firewall::InsidePorts;
pub use layers::Overlay;
pub use mounts::{MountSource, SandboxMount};
pub use net::NetError;
pub use roles::dispatch;
pub use spec::{InstanceSpec, LayerFile, TmpfsSpec};
pub use step_network::{StepLink, StepNetwork, host_resolver};
pub use tree::copy_tree;
