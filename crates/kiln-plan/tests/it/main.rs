//! The planner by script: each test is a sentence of what a deploy system has to get right.

mod drain;
mod planning;
mod policy;
mod restart;
mod rollback;
mod rollout;
mod scale;
mod script;
