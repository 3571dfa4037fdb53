//! An image's tests: run against it as it will run, before it gets its tag.
//!
//! Files and packages are looked up in the mounted image. Commands run in a container that is made as an instance's is, with a
//! network of its own that leads nowhere; HTTP and ports are asked from inside that network. A test that passed is known by the
//! digests of image and test and isn't run again; one that failed is.

mod client;
mod command;
mod files;
mod http;
mod log;
mod run;
mod subject;
mod text;

pub(crate) use run::{Passed, run};
pub(crate) use subject::Subject;
