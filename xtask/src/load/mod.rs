//! The client that the benchmarks load kiln with: HTTP/1.1 over plain sockets, written here so that nothing
//! between the wire and the count retries, pools or forgives. Every answer is checked byte by byte.

mod exchange;
mod gate;
mod request;
mod tally;
mod workers;

pub(crate) use gate::Gate;
pub(crate) use tally::Tally;
pub(crate) use workers::{Load, LoadOptions};

#[cfg(test)]
mod tests;
