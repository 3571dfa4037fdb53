//! Definitions as a person writes them, right and wrong.

mod accepted;
mod rejected;
